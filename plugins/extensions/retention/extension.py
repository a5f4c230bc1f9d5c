"""The component: the background cleanup, and the admin routes."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import anyio
from pydantic import Field

from pipeline import (
    Access,
    ComponentConfig,
    Database,
    Duration,
    Extension,
    Finding,
    Host,
    Instrument,
    InstrumentKind,
    Invalid,
    Item,
    Level,
    Overloaded,
    Reading,
    Request,
    Response,
    Route,
)
from plugins.extensions.retention.parameters import Cleanup, Days, PolicyChange, Preview, read_parameters
from plugins.extensions.retention.tables import LARGE_CLEANUP, LastRun, Policy, Tables

Handler = Callable[[Request], Awaitable[Response]]

CLOCK_TOLERANCE = 3600.0
"""By how much the wall clock may have moved against the monotonic one since the last cleanup, in seconds."""

CLOCK, SHARE = "clock", "share"
"""Why a background cleanup of a table is stopped."""

_PAGES = "SELECT freelist_count, page_size FROM pragma_freelist_count, pragma_page_size"


class RetentionConfig(ComponentConfig):
    """How long data is kept where its table's policy names no time of its own."""

    days: Days = 90
    """The retention of tables whose policy has none, in days."""
    interval: Annotated[Duration, Field(gt=0)] = 3600
    """The time between two cleanups in the background, in seconds. The first comes one interval after the start."""


class RetentionExtension(Extension[RetentionConfig]):
    """Deletes what is older than its table's policy, in the background and by request.

    In the background, nothing is deleted after the wall clock was moved, until it is right again, the service is started
    anew, or somebody with an admin key has cleaned up by hand: a clock that is wrong must not delete everything.

    A background cleanup of a table also stops when every row that the table had at its last cleanup is old (`clock`), and
    when it would delete more than half of the table and more than 10,000 rows, and the policy has not changed since the
    last cleanup (`share`). A cleanup by an admin deletes any share.
    """

    requires = (Database,)

    def __init__(self, id: str, config: RetentionConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self.wall_clock: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = time.monotonic
        self._database = host.extension(Database)
        self._tables = Tables(self._database, config.days)
        self._clocks_differed = 0.0
        self._interval_changed = anyio.Event()
        self._taking_turns = anyio.Lock()
        self._stopped: dict[str, str] = {}
        self._tables_seen: set[str] = set()
        self._has_looked = False

    async def start(self) -> None:
        """Begin to clean up in the background, in the service itself."""
        self._trust_the_clock()
        if self.host.is_service:
            await self._look_at_newest_rows()
            self.host.spawn(self, self._clean_up_for_ever)

    async def _look_at_newest_rows(self) -> None:
        """Store their times before anything is received: with a wrong clock, new rows get wrong times."""
        try:
            runs = await self._tables.last_runs()
            for policy in (await self._tables.policies()).values():
                if policy.table not in runs:
                    await self._tables.note_seen(policy, self.wall_clock())
            self._has_looked = True
        except (sqlite3.Error, TimeoutError) as error:
            self.log.warning("cannot read the newest rows: %s", error)

    async def reload(self, config: RetentionConfig, host: Host) -> Callable[[], None]:
        """Everything may change; another interval begins at once."""

        def apply() -> None:
            self._tables.default_days = config.days
            if config.interval != self.config.interval:
                self._interval_changed.set()

        return apply

    def routes(self) -> Sequence[Route]:
        """The admin routes of docs/api.md that are about what is stored."""

        def admin(method: str, path: str, handler: Handler, summary: str) -> Route:
            return Route(
                method, f"/admin/{path}", Access.ADMIN, _busy_is_overloaded(handler, self._taking_turns), summary
            )

        return (
            admin("GET", "retention/preview", self._preview, "What a cleanup would delete"),
            admin("POST", "retention/cleanup", self._cleanup, "Delete what is older than the policies say"),
            admin("GET", "retention/policies", self._policies, "How long each table is kept"),
            admin("PUT", "retention/policies/{table}", self._change, "Change how long a table is kept"),
            admin("GET", "database/stats", self._statistics, "How many rows each table holds"),
            admin("GET", "database/size", self._size, "How many bytes the database takes"),
        )

    def findings(self) -> Iterable[Finding]:
        """How long data is kept."""
        where, what = f"extensions.{self.id}.days", f"{self.config.days} days, where a table's policy says nothing else"
        yield Finding(Level.OK, Item.RETENTION, where, what)

    async def clean_up(self) -> None:
        """What the background does each interval: delete by every policy, unless the clock was moved."""
        now = self.wall_clock()  # once, since it may be moved in between
        moved = now - self.monotonic() - self._clocks_differed
        # A clock that was wrong at the start is right once it has moved.
        if abs(moved) > CLOCK_TOLERANCE and CLOCK not in self._stopped.values():
            self.log.warning(
                "nothing is deleted: the clock was moved by %.1f hours since the last cleanup"
                " (if it is right now, restart the service or call POST /admin/retention/cleanup)",
                moved / 3600,
            )
            return
        self._trust_the_clock()
        try:
            runs = await self._tables.last_runs()
            policies = await self._tables.policies()
            self._tables_seen = set(policies)
            for policy in policies.values():
                run = runs.get(policy.table) or await self._first_run(policy, now)
                self._note_stop(policy, await self._reason_to_stop(policy, run, now), run, now)
                if policy.table not in self._stopped:
                    result = await self._clean(policy, now, dry_run=False)
                    if run.is_outdated(policy, now):
                        await self._tables.note_run(policy, now)
                    if result["records_deleted"]:
                        self.log.info("deleted %d old rows from %s", result["records_deleted"], policy.table)
        except (sqlite3.Error, TimeoutError) as error:
            self.log.warning("cleanup failed, and is tried again in %g seconds: %s", self.config.interval, error)

    async def _first_run(self, policy: Policy, now: float) -> LastRun:
        """For a table without a stored cleanup. One that got its policy after the start says nothing about the clock."""
        if self._has_looked:
            return LastRun(None, datetime.fromtimestamp(now, UTC))
        return await self._tables.note_seen(policy, now)

    async def _reason_to_stop(self, policy: Policy, run: LastRun, now: float) -> str | None:
        if not policy.is_active or not await self._tables.has_old(policy, now):
            return None
        if run.at < policy.begins(now):
            return CLOCK
        was_changed = run.retention_days not in (None, policy.retention_days)
        return SHARE if not was_changed and await self._tables.is_large(policy, now) else None

    def _note_stop(self, policy: Policy, reason: str | None, run: LastRun, now: float) -> None:
        """Log a stop once, until it ends or gets another reason."""
        before = self._stopped.pop(policy.table, None)
        if reason is None:
            if before is not None:
                self.log.info("the cleanup of %s runs again", policy.table)
            return
        self._stopped[policy.table] = reason
        if reason == before:
            return
        way_out = "to delete all the same, call POST /admin/retention/cleanup?dry_run=false&table_name=" + policy.table
        if reason == CLOCK:
            self.log.error(
                "nothing is deleted from %s: its last cleanup or newest row is of %s, and rows before %s are old:"
                " the clock may be wrong (%s)",
                *(policy.table, run.at.isoformat(timespec="seconds"), policy.cutoff(now), way_out),
            )
        else:
            self.log.error(
                "nothing is deleted from %s: more than half of its rows, and more than %d, are older than %d days (%s)",
                *(policy.table, LARGE_CLEANUP, policy.retention_days, way_out),
            )

    def instruments(self) -> Sequence[Instrument]:
        """Which tables are not cleaned up, and why."""

        def read() -> list[Reading]:
            return [
                ({"table": table, "reason": reason}, float(self._stopped.get(table) == reason))
                for table in sorted(self._tables_seen)
                for reason in (CLOCK, SHARE)
            ]

        return [
            Instrument(
                "retention_stopped",
                InstrumentKind.GAUGE,
                "Whether the automatic cleanup of the table is stopped, by reason: 1 until it runs again.",
                ("table", "reason"),
                read,
            )
        ]

    async def _clean_up_for_ever(self) -> None:
        while True:
            self._interval_changed = anyio.Event()
            with anyio.move_on_after(self.config.interval) as waiting:
                await self._interval_changed.wait()
            if waiting.cancelled_caught:
                await self.clean_up()

    def _trust_the_clock(self) -> None:
        self._clocks_differed = self.wall_clock() - self.monotonic()

    async def _clean(self, policy: Policy, now: float, *, dry_run: bool) -> dict[str, Any]:
        """Clean up one table, `now` being seconds since 1970. `records_deleted` of a dry run is what would be deleted."""
        began = self.monotonic()
        status, records = "skipped", 0
        self._tables_seen.add(policy.table)
        if policy.is_active and dry_run:
            status, records = "dry_run", (await self._tables.preview(policy, now))["records_to_delete"]
        elif policy.is_active:
            status, records = "completed", await self._tables.delete_old(policy, now)
        return {
            "table": policy.table,
            "status": status,
            "records_deleted": records,
            "duration_seconds": round(self.monotonic() - began, 3),
            "retention_days": policy.retention_days,
        }

    async def _preview(self, request: Request) -> Response:
        wanted = read_parameters(request, Preview)
        policies = await self._wanted(wanted.table_name)
        now = self.wall_clock()
        return Response({policy.table: await self._tables.preview(policy, now) for policy in policies})

    async def _cleanup(self, request: Request) -> Response:
        wanted = read_parameters(request, Cleanup)
        policies = await self._wanted(wanted.table_name)
        if not wanted.dry_run:
            self._trust_the_clock()
        began, now = self.monotonic(), self.wall_clock()
        results = []
        for policy in policies:
            result = await self._clean(policy, now, dry_run=wanted.dry_run)
            if not wanted.dry_run:
                self._stopped.pop(policy.table, None)
                await self._tables.note_run(policy, now)
                what = ("cleaned up %s by request: %s, %d old rows deleted", policy.table, result["status"])
                self.log.info(*what, result["records_deleted"], extra=_asked_by(request))
            results.append(result)
        if wanted.table_name is not None:
            return Response(results[0])
        return Response(
            {
                "total_records_processed": sum(result["records_deleted"] for result in results),
                "duration_seconds": round(self.monotonic() - began, 3),
                "tables": {result["table"]: result for result in results},
            }
        )

    async def _policies(self, request: Request) -> Response:
        policies = await self._tables.policies()
        return Response({table: policy.answer() for table, policy in policies.items()})

    async def _change(self, request: Request) -> Response:
        wanted = read_parameters(request, PolicyChange)
        changes = wanted.model_dump(include=wanted.model_fields_set - {"table"})
        if not changes:
            raise Invalid("retention_days, is_active: at least one must be given")
        before = (await self._tables.policy(wanted.table)).answer()
        await self._tables.change(wanted.table, changes)
        after = (await self._tables.policy(wanted.table)).answer()
        what = ", ".join(f"{name} {before[name]} -> {after[name]}" for name in changes)
        self.log.info("changed the policy of %s by request: %s", wanted.table, what, extra=_asked_by(request))
        return Response(after)

    async def _statistics(self, request: Request) -> Response:
        policies = await self._tables.policies()
        return Response({table: await self._tables.statistics(policy) for table, policy in policies.items()})

    async def _size(self, request: Request) -> Response:
        ((free_pages, page_size),) = await self._database.read(_PAGES)
        path = self._database.path
        return Response(
            {
                "file_bytes": _bytes(path),
                "wal_bytes": _bytes(_log_of(path)),
                "free_pages": free_pages,
                "page_size": page_size,
            }
        )

    async def _wanted(self, table: str | None) -> list[Policy]:
        return list((await self._tables.policies()).values()) if table is None else [await self._tables.policy(table)]


def _busy_is_overloaded(handler: Handler, taking_turns: anyio.Lock) -> Handler:
    """The handler, one call at a time: what operators ask may be slow, and others read the database too."""

    async def answer(request: Request) -> Response:
        try:
            async with taking_turns:
                return await handler(request)
        except (sqlite3.OperationalError, TimeoutError) as error:
            raise Overloaded(f"the database cannot answer now: {error}") from error

    return answer


def _asked_by(request: Request) -> dict[str, Any]:
    """The fields of a log line that tell who asked."""
    caller = request.context.caller
    service, key_id = (caller.service, caller.key_id) if caller else (None, None)
    return {"request_id": request.context.request_id, "service": service, "key_id": key_id}


def _log_of(path: Path) -> Path:
    return Path(f"{os.path.realpath(path)}-wal")


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
