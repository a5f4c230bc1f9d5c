"""The key store: every key in memory by its digest, so that letting a known one in costs a hash and a look into a dict.

A key that another process makes works at once, since an unknown one is looked up; one that another process revokes is
refused as soon as the table was read again.
"""

from __future__ import annotations

import heapq
import hmac
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
from pydantic import ConfigDict, Field, model_validator

from pipeline import (
    Caller,
    ComponentConfig,
    Database,
    Extension,
    Failures,
    Finding,
    Host,
    Instrument,
    KeyStore,
    Overloaded,
    Route,
    Secret,
    TokenBucket,
    Unauthenticated,
    warn_if_others_read,
)
from plugins.extensions.api_keys.findings import key_findings
from plugins.extensions.api_keys.keys import digest, has_good_checksum, new_public_id, owner
from plugins.extensions.api_keys.known import KnownKey
from plugins.extensions.api_keys.limits import SHOWN_KEYS, limit_instruments, limit_route
from plugins.extensions.api_keys.preshared import PreSharedKey, preshared_keys
from plugins.extensions.api_keys.store import KeyRow, KeyTable, Usage

SECONDS_BETWEEN_READS = 2.0
"""Of the table; a key that another process revoked must be refused within 5 seconds (docs/operating.md)."""
SECONDS_BETWEEN_WRITES = 10.0
"""Of the usage counters."""
LOOKUPS_BETWEEN_READS = 100
"""How many unknown keys are looked up until the table is read as a whole again, so that nobody who makes up keys can keep the
database busy. Past it, a new key works with the next reading."""
DATABASE_ERRORS = (sqlite3.Error, TimeoutError)
"""What a database in trouble raises. It takes nothing away from the keys that are known."""


class ApiKeysConfig(ComponentConfig):
    """Limits and the keys that come from outside the database."""

    model_config = ConfigDict(hide_input_in_errors=True)

    rate_limit: int = Field(default=1000, ge=1)
    """Requests a minute for a key without a limit of its own."""
    admin_key: Secret | None = None
    """A key for the service `admin` with the scopes `admin` and `ingest`; kept in memory only."""
    admin_key_file: Path | None = None
    """A file that holds that key, instead."""
    max_failures: int = Field(default=20, ge=0)
    """How many unknown keys may come from one address in a minute before all unknown ones from there are answered 429 without a look into
    the database; good keys pass as ever. 0: any number."""
    preshared_prefix: str = Field(default="METRICS_API_KEY_", min_length=1)
    """Every variable of the environment with this prefix is an ingest key for the service that the rest of its name says, in
    lower case and with `_` as `-`; with `_FILE` at its end, it names a file that holds the key."""

    @model_validator(mode="after")
    def _one_admin_key(self) -> ApiKeysConfig:
        if self.admin_key and self.admin_key_file:
            raise ValueError("admin_key and admin_key_file are both set (must be one of them)")
        return self


class ApiKeys(Extension[ApiKeysConfig], KeyStore):
    """Knows whose a key is: those of the database, and those that the environment pre-shares.

    Without a database there are only pre-shared keys and the admin's, and their use is not recorded.
    """

    uses = (Database,)

    table: KeyTable
    """Set only where there is a database."""

    def __init__(self, id: str, config: ApiKeysConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.wall_clock = time.time
        self._database = _database_of(host)
        if self._database is not None:
            self.table = KeyTable(self._database)
        self._keys: dict[str, KnownKey] = {}
        self._rows: list[KeyRow] | None = None
        self._missed: set[str] = set()
        self._failures = Failures(config.max_failures)
        # Whoever reads rows and applies them holds it, so that no old row undoes what was learned since.
        self._reading = anyio.Lock()

    async def start(self) -> None:
        """Take in all keys. A command only needs the table."""
        if not self.host.is_service:
            return
        shared = _preshared_of(self.config, self.host)
        self._take_preshared(shared, self.config.rate_limit, await self._public_ids(shared))
        if self._database is not None:
            await self.refresh()
        if all(key.good_until <= self.wall_clock() for key in self._keys.values()):
            self.log.warning("there is no good API key, so every push is refused; make one: %s", self._advice)
        if self._database is not None:
            self.host.spawn(self, self._keep_reading)
            self.host.spawn(self, self._keep_writing)

    @property
    def _advice(self) -> str:
        """How to make a key."""
        if self._database is None:
            return f"set {self.config.preshared_prefix}<NAME>; keys in a table need the extension database"
        return "metrics-service keys create --service NAME, with the --config and --env-file of this service"

    async def reload(self, config: ApiKeysConfig, host: Host) -> Callable[[], None]:
        """Read the keys from outside again. Every key keeps its caller and its bucket."""
        shared = _preshared_of(config, host)
        ids = await self._public_ids(shared)

        def apply() -> None:
            if config.max_failures != self.config.max_failures:
                self._failures = Failures(config.max_failures)
            self._take_preshared(shared, config.rate_limit, ids)
            for key in self._keys.values():
                key.hold_to(key.limit or config.rate_limit)

        return apply

    async def _public_ids(self, shared: Sequence[PreSharedKey]) -> Mapping[str, str]:
        """The public ids of these keys, by digest: those of the table, or random ones for this process if it cannot be used."""
        digests = [each.digest for each in shared]
        try:
            if self._database is not None:
                return await self.table.preshared_ids(digests)
        except DATABASE_ERRORS as error:
            self.log.warning("cannot store public ids of pre-shared keys; new ones are used until a restart: %s", error)
        return {each: new_public_id() for each in digests}

    def _take_preshared(self, shared: Sequence[PreSharedKey], rate_limit: int, ids: Mapping[str, str]) -> None:
        """Know these keys from outside, and no others."""
        digests = {each.digest for each in shared}
        for key in [key for key in self._keys.values() if key.id is None and key.digest not in digests]:
            del self._keys[key.digest]
            self._rows = None  # it may be in the table as well
        for each in shared:
            known = self._keys.get(each.digest)
            if known is None:
                self._keys[each.digest] = self._preshared(each, rate_limit, ids[each.digest])
            else:
                known.id = known.limit = None
                known.good_until = math.inf
                known.caller.service, known.caller.scopes = each.service, each.scopes

    async def stop(self) -> None:
        """Write what was counted."""
        await self._try_to_write()

    def findings(self) -> Iterable[Finding]:
        """Whether there are good keys, how strong they are, and who else may read them."""
        path = self._database.path if self._database else None
        return key_findings(self.id, path, _preshared_of(self.config, self.host), self._advice)

    def routes(self) -> Sequence[Route]:
        """What a client may ask about its own limit."""
        return [limit_route()]

    def instruments(self) -> Sequence[Instrument]:
        """What is left of every key's limit."""
        return limit_instruments(self._used_last)

    def _used_last(self) -> list[Caller]:
        """The callers of good keys, not all of them if they are many."""
        now = self.wall_clock()
        good = [key for key in self._keys.values() if now < key.good_until]
        if len(good) > SHOWN_KEYS:
            good = heapq.nlargest(SHOWN_KEYS, good, key=lambda key: key.last_used)
        return [key.caller for key in good]

    async def authenticate(self, credential: str, peer: str = "") -> Caller:
        """Whose key this is; see `KeyStore`. Raises `Overloaded` for an unknown key while the database cannot be read, `TooManyFailures`
        for one from an address that many came from."""
        fingerprint = digest(credential)
        key = self._keys.get(fingerprint)
        if key is None:
            self._failures.take(peer)
            key = await self._look_up(credential, fingerprint)
        if not hmac.compare_digest(key.digest, fingerprint):
            raise Unauthenticated("Invalid API key")
        now = self.wall_clock()
        if now >= key.good_until:
            key.refused += 1
            raise Unauthenticated("API key is inactive")
        key.used += 1
        key.last_used = now
        return key.caller

    async def refresh(self) -> None:
        """Read the table, and take over what other processes changed in it."""
        async with self._reading:
            rows = await self.table.rows()
            self._missed.clear()
            if rows == self._rows:
                return
            there = {row.digest for row in rows}
            for key in list(self._keys.values()):
                if key.id is not None and key.digest not in there:
                    del self._keys[key.digest]
            for row in rows:
                self._apply(row)
            self._rows = rows

    async def revoke(self, id: int) -> bool:
        """Refuse this key from now on, here at once and elsewhere soon. Gives whether there is such a key."""
        async with self._reading:
            found = await self.table.revoke(id, self._now())
            for key in self._keys.values():
                if key.id == id:
                    key.good_until = 0.0
            return found

    async def write_usage(self) -> None:
        """Write what was counted since the last time, in one transaction."""
        counted = [
            (key, Usage(key.id, key.used, key.refused, datetime.fromtimestamp(key.last_used, UTC)))
            for key in self._keys.values()
            if key.id is not None and (key.used or key.refused)
        ]
        if not counted:
            return
        for key, usage in counted:
            key.used -= usage.used
            key.refused -= usage.refused
        try:
            await self.table.add_usage([usage for _, usage in counted], self._now())
        except BaseException:  # rolled back, by an error or a cancellation
            for key, usage in counted:
                key.used += usage.used
                key.refused += usage.refused
            raise

    async def _look_up(self, credential: str, fingerprint: str) -> KnownKey:
        """A key that is not in memory, if another process has just made it."""
        if self._database is None or not has_good_checksum(credential):
            raise Unauthenticated("Invalid API key")
        async with self._reading:
            if fingerprint in self._missed or len(self._missed) >= LOOKUPS_BETWEEN_READS:
                raise Unauthenticated("Invalid API key")
            try:
                row = await self.table.find(fingerprint)
            except DATABASE_ERRORS as error:  # which `_keep_reading` reports, once
                raise Overloaded("API keys cannot be looked up now") from error
            if row is None:
                self._missed.add(fingerprint)
                raise Unauthenticated("Invalid API key")
            self._rows = None  # what is in memory is no longer what was read last
            return self._apply(row)

    def _apply(self, row: KeyRow) -> KnownKey:
        """Make what is in memory agree with the row. A key's caller and bucket stay the same for as long as it exists."""
        limit = row.rate_limit or self.config.rate_limit
        key = self._keys.get(row.digest)
        if key is None:
            caller = Caller(row.service, row.public_id, frozenset(), TokenBucket(limit), owner(row.digest))
            key = self._keys[row.digest] = KnownKey(row.id, row.digest, caller)
        if key.id is None:  # The same key came from outside as well, and whoever runs the service decides.
            return key
        key.id, key.limit = row.id, row.rate_limit
        key.good_until = row.good_until
        key.caller.service = row.service
        key.caller.scopes = frozenset(row.scopes.split())
        key.hold_to(limit)
        return key

    def _preshared(self, shared: PreSharedKey, rate_limit: int, public_id: str) -> KnownKey:
        if shared.weak:
            self.log.warning("%s is shorter than 32 characters: it works, and it may be guessed", shared.source)
        if shared.file is not None:
            warn_if_others_read(shared.file, self.log)
        caller = Caller(shared.service, public_id, shared.scopes, TokenBucket(rate_limit), owner(shared.digest))
        return KnownKey(None, shared.digest, caller)

    async def _keep_reading(self) -> None:
        failing = False
        while True:
            await anyio.sleep(SECONDS_BETWEEN_READS)
            try:
                await self.refresh()
            except DATABASE_ERRORS as error:
                if not failing:
                    self.log.warning("cannot read the API keys, so revoked ones stay good: %s", error)
                failing = True
            else:
                failing = False

    async def _keep_writing(self) -> None:
        while True:
            await anyio.sleep(SECONDS_BETWEEN_WRITES)
            await self._try_to_write()

    async def _try_to_write(self) -> None:
        try:
            await self.write_usage()
        except DATABASE_ERRORS as error:
            self.log.warning("cannot write how often API keys were used; it stays counted: %s", error)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.wall_clock(), UTC)


def _database_of(host: Host) -> Database | None:
    try:
        return host.extension(Database)
    except LookupError:
        return None


def _preshared_of(config: ApiKeysConfig, host: Host) -> list[PreSharedKey]:
    return preshared_keys(host.environ, config.preshared_prefix, config.admin_key, config.admin_key_file)
