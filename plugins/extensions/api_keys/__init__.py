"""Knows whose a key is: keys in the database, keys in the environment, and how often each was used.

    extensions:
      database:
        path: /var/lib/sqlite/metrics.db
      api_keys:

Whoever must know who is asking, as the processor `auth` does, asks it by the interface `KeyStore`. `metrics-service keys` makes,
lists, rotates and revokes keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import Declaration, hookimpl
from plugins.extensions.api_keys.commands import keys
from plugins.extensions.api_keys.extension import ApiKeys, ApiKeysConfig

if TYPE_CHECKING:
    import click


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """The extension `api_keys`."""
    return [Declaration("api_keys", ApiKeys, ApiKeysConfig)]


@hookimpl
def declare_commands() -> Sequence[click.Command]:
    """The command group `keys`."""
    return [keys]
