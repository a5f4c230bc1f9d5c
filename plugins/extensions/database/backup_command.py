"""`metrics-service backup`: a copy of the database that can be restored, while the service runs or not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from pipeline import Invocation, StartError, check_exists, parse_duration
from plugins.extensions.database.backup import back_up_to, prune
from plugins.extensions.database.connection import CANNOT_CREATE
from plugins.extensions.database.extension import DatabaseConfig, DatabaseExtension

_USER_MISTAKE = 2


def _age(context: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    try:
        return timedelta(seconds=float(parse_duration(value)))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no age (for example 30d)") from None


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--keep", callback=_age, default="30d", show_default=True, help="Delete older backups of this database.")
@click.pass_obj
def backup(invocation: Invocation, folder: Path | None, keep: timedelta) -> None:
    """Write a checked, compressed copy of the database to FOLDER, by default that of METRICS_BACKUP_DIR.

    The newest backup is never deleted, and none is if this one fails.
    """
    config = invocation.config_of(DatabaseExtension)
    assert isinstance(config, DatabaseConfig)
    folder = folder or config.backups
    if folder is None:
        raise StartError("no folder for the backup (must be named here, or by METRICS_BACKUP_DIR)", _USER_MISTAKE)
    check_exists("database", config.path)
    now = datetime.now(UTC)
    made = back_up_to(folder, config.path, now)
    click.echo(f"wrote {made} ({made.stat().st_size} bytes)")
    try:
        for old in prune(folder, config.path, keep, now):
            click.echo(f"deleted {old}")
    except OSError as error:
        raise StartError(f"cannot delete old backups in {folder}: {error.strerror}", CANNOT_CREATE) from None
