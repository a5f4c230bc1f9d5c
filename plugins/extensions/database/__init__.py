"""The `database` extension: the one owner of the SQLite file.

    extensions:
      database:
        path: /var/lib/sqlite/metrics.db

Everybody who stores something in SQLite asks it: it holds the only writing connection, the lock that keeps a second service
away, the schema (`metrics-service migrate`) and the checkpoints.
"""

from __future__ import annotations

import click

from pipeline import Declaration, hookimpl
from plugins.extensions.database.backup_command import backup
from plugins.extensions.database.commands import migrate
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension


@hookimpl
def declare_components() -> list[Declaration]:
    return [Declaration("database", DatabaseExtension, DatabaseConfig)]


@hookimpl
def declare_commands() -> list[click.Command]:
    return [migrate, backup]
