"""`metrics-service keys`: make, list, rotate and revoke keys, beside a running service or without one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import click

from pipeline import Database, Invocation, StartError, check_exists, parse_duration
from plugins.extensions.api_keys.extension import ApiKeys
from plugins.extensions.api_keys.keys import digest, new_key
from plugins.extensions.api_keys.preshared import SERVICE_NAME
from plugins.extensions.api_keys.store import KeyListing, timestamp

MAX_RATE_LIMIT = 1_000_000_000
MAX_DESCRIPTION = 200
_USER_MISTAKE = 2


@asynccontextmanager
async def _key_store(invocation: Invocation, *, may_make_database: bool = False) -> AsyncIterator[ApiKeys]:
    """The key store, once it was said which database it is in."""
    host = invocation.constructed()
    try:
        host.extension(ApiKeys)
    except LookupError:
        raise StartError("the configuration has no extension of the type 'api_keys'", _USER_MISTAKE) from None
    try:
        database = host.extension(Database).path
    except LookupError:
        raise StartError(
            "keys are kept in a database, and the configuration has no extension of the type 'database'"
            " (add one, or pre-share a key by METRICS_API_KEY_<NAME>)",
            _USER_MISTAKE,
        ) from None
    if not may_make_database:
        check_exists("database", database)
    click.echo(f"database: {database}")
    async with invocation.extensions() as started:
        yield started.extension(ApiKeys)


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke API keys."""


def _service(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not SERVICE_NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r} is no service name (must be 1 to 100 of A-Z a-z 0-9 _ -)")
    return value


def _overlap(context: click.Context, parameter: click.Parameter, value: str) -> timedelta:
    try:
        overlap = timedelta(seconds=float(parse_duration(value)))
        _ = datetime.now(UTC) + overlap  # which has an end
        return overlap
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is no duration (for example 24h, or 0 for at once)") from None


def _lifetime(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        seconds = float(parse_duration(value))
        if seconds > 0:
            return datetime.now(UTC) + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        pass
    raise click.BadParameter(f"{value!r} is no lifetime (for example 90d or 12h)")


def _description(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if len(value) > MAX_DESCRIPTION or not value.isprintable():
        raise click.BadParameter(f"must be one line of at most {MAX_DESCRIPTION} printable characters")
    return value


def _id(context: click.Context, parameter: click.Parameter, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise click.BadParameter(f"{value!r} is no key's id (must be a number that `metrics-service keys list` shows)")
    return int(value)


@keys.command()
@click.option("--service", required=True, callback=_service, help="The service that the key belongs to.")
@click.option(
    "--scope", "scopes", type=click.Choice(["ingest", "admin"]), multiple=True, default=["ingest"], show_default=True,
    help="What the key may do; give it twice for both.",
)  # fmt: skip
@click.option(
    "--rate-limit", type=click.IntRange(1, MAX_RATE_LIMIT), help="Requests a minute, in place of the default."
)
@click.option("--expires", "expires_at", callback=_lifetime, help="After what time it expires, for example 90d.")
@click.option("--description", default="", callback=_description, help="A note for whoever reads the list.")
@click.pass_obj
def create(
    invocation: Invocation,
    service: str,
    scopes: tuple[str, ...],
    rate_limit: int | None,
    expires_at: datetime | None,
    description: str,
) -> None:
    """Make a key and show it, this once."""
    key = new_key()
    scopes = tuple(dict.fromkeys(scopes))

    async def add() -> tuple[int, str]:
        async with _key_store(invocation, may_make_database=True) as store:
            number = await store.table.add(
                digest(key), service, scopes, rate_limit, expires_at, description, datetime.now(UTC)
            )
            return number, await store.table.public_id(number)

    number, public_id = anyio.run(add)
    _show(number, public_id, key, service, " ".join(scopes), rate_limit, expires_at)


def _show(
    number: int,
    public_id: str,
    key: str,
    service: str,
    scopes: str,
    rate_limit: int | None,
    expires_at: datetime | None,
) -> None:
    limit = f"{rate_limit} requests a minute" if rate_limit else "the default rate limit"
    expiry = f"expires {timestamp(expires_at)}" if expires_at else "never expires"
    click.echo(f"API key {number} ({public_id}) of the service {service}: {scopes}, {limit}, {expiry}\n")
    click.echo(f"    {key}\n")
    click.echo("Keep it now: only its SHA-256 is stored. Send it with every request, in the header\n")
    click.echo(f"    X-API-Key: {key}")


@keys.command("list")
@click.pass_obj
def list_keys(invocation: Invocation) -> None:
    """Show all keys that the database holds; not the keys themselves, which nobody has."""

    async def read() -> list[KeyListing]:
        async with _key_store(invocation) as store:
            return await store.table.listing()

    heads = ("ID", "KEY", "SERVICE", "SCOPES", "LIMIT", "ACTIVE", "EXPIRES", "LAST USED", "USED", "DESCRIPTION")
    table = [heads, *map(_cells, anyio.run(read))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(key: KeyListing) -> tuple[str, ...]:
    return (
        str(key.id),
        key.public_id,
        key.service,
        key.scopes,
        str(key.rate_limit or "default"),
        "yes" if key.is_active else "no",
        key.expires_at or "never",
        key.last_used_at or "never",
        str(key.usage_count),
        key.description,
    )


@keys.command()
@click.argument("id", callback=_id)
@click.option("--overlap", callback=_overlap, default="24h", show_default=True, help="How long the old key stays good.")
@click.option(
    "--expires", "expires_at", callback=_lifetime, help="After what time the new key expires, for example 90d."
)
@click.pass_obj
def rotate(invocation: Invocation, id: int, overlap: timedelta, expires_at: datetime | None) -> None:
    """Make a key that may do what the key with this ID may, and have that one expire."""
    key = new_key()

    async def rotate() -> tuple[int, str, KeyListing] | None:
        async with _key_store(invocation) as store:
            rotated = await store.table.rotate(id, digest(key), expires_at, overlap, datetime.now(UTC))
            return rotated and (rotated[0], await store.table.public_id(rotated[0]), rotated[1])

    rotated = anyio.run(rotate)
    if rotated is None:
        raise click.UsageError(f"there is no good key with the id {id} (`metrics-service keys list` shows them)")
    number, public_id, old = rotated
    _show(number, public_id, key, old.service, old.scopes, old.rate_limit, expires_at)
    click.echo(f"\nThe old key {id} ({old.public_id}) is good until {old.expires_at}.")


@keys.command()
@click.argument("id", callback=_id)
@click.pass_obj
def revoke(invocation: Invocation, id: int) -> None:
    """Refuse the key with this ID from now on; a running service does so within seconds."""

    async def revoke() -> bool:
        async with _key_store(invocation) as store:
            return await store.revoke(id)

    if not anyio.run(revoke):
        raise click.UsageError(f"there is no key with the id {id} (`metrics-service keys list` shows them)")
    click.echo(f"API key {id} is revoked.")
