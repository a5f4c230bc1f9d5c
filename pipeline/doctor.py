"""What the engine itself looks at for `metrics-service doctor`; components add theirs. Nothing is started, taken or changed."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import books
from pipeline.command_host import CommandHost
from pipeline.component import Component, Receiver
from pipeline.config.fields import ListenerConfig, TLSConfig
from pipeline.config.model import Configuration, LogSettings
from pipeline.config.secret_files import secret_files
from pipeline.containment import CALLED
from pipeline.errors import StartError, in_a_line
from pipeline.files import lock_holder
from pipeline.findings import CHECKLIST, Finding, Item, Level, look_at_mode, look_at_place, looking_at
from pipeline.graph import Graph, Pipeline
from pipeline.interfaces import Database
from pipeline.journal_format import Durability
from pipeline.journal_settings import JournalSettings

LEAST_RESERVE = 48 * 2**20
"""Bytes: the write-ahead log of a journal, and its checkpoint (docs/full-disk.md)."""
CLOCK_TOLERANCE = 600.0
"""Seconds that a file may be from the future."""
OTHER_FILES = 256
"""How many files are open beside connections."""
_LOOPBACK = ("127.", "localhost", "::1")


def examine(configuration: Configuration) -> list[Finding]:
    """All findings, the worst first."""
    host = CommandHost(configuration)
    graph = Graph(configuration, host, tuple(host.extensions))
    found = [*_logs(configuration.settings.log), *_plugins(configuration), *_secret_files(configuration)]
    listeners = []
    for component in graph.components():
        found += [*_own(component), *_tls_keys(component)]
        if isinstance(component.config, ListenerConfig):
            listeners.append(component.config)
            found += _tls(component, component.config) if isinstance(component, Receiver) else ()
    for pipeline in graph.pipelines:
        found += [*_access(pipeline), *_settings(pipeline)]
    try:
        files = {each.id: each.present_path() for each in graph.pipelines}
    except StartError as error:
        found.append(Finding(Level.PROBLEM, Item.DATA, "journals", f"the next start is refused: {error}"))
        files = {each.id: each.journal.path for each in graph.pipelines}
    for pipeline in graph.pipelines:
        path = files[pipeline.id]
        found += _allowed(f"journal {path}", partial(_journal, path, pipeline.journal.settings))
    pipelines, paths = graph.pipelines, list(files.values())
    found += _allowed("journals", lambda: [*_disk(pipelines, files), *_clock(paths), *_process(paths, listeners)])
    spoken_of = {each.item for each in found}
    if not any(isinstance(each, Database) for each in host.extensions):
        spoken_of |= {Item.BACKUPS, Item.RETENTION}  # nothing is stored
    advice = "nothing that is configured takes care of it"
    found += [
        Finding(Level.PROBLEM, item, "service", f"no {item}", advice) for item in CHECKLIST if item not in spoken_of
    ]
    order = [Level.PROBLEM, Level.WARNING, Level.OK]
    return sorted(found, key=lambda each: (order.index(each.level), list(Item).index(each.item)))


def _allowed(where: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What is found there; that we may not look is a finding too."""
    try:
        return list(look())
    except OSError as error:
        what = f"cannot look at {error.filename or where}: {error.strerror}"
        return [Finding(Level.PROBLEM, Item.MACHINE, where, what, "run doctor as the user of the service")]


def _own(component: Component[Any]) -> list[Finding]:
    try:
        found = list(component.findings())
        for each in found:
            if not isinstance(each, Finding):
                raise TypeError(f"findings returned {in_a_line(each)} (must return Finding objects)")
        return found
    except CALLED as error:  # a plugin's mistake is one finding, and costs no other
        where, what = f"{component.kind}s.{component.id}", f"cannot be looked at: {in_a_line(error)}"
        return [Finding(Level.PROBLEM, Item.MACHINE, where, what)]


def _logs(log: LogSettings) -> Iterator[Finding]:
    if log.format == "text":
        yield Finding(Level.WARNING, Item.LOGS, "service.log.format", "'text' is for people", "'json' for programs")
    if log.level != "info":
        hidden = "says more than anybody reads" if log.level == "debug" else "hides what comes before an error"
        yield Finding(Level.WARNING, Item.LOGS, "service.log.level", f"{log.level!r} {hidden}", "'info' in production")
    if log.format != "text" and log.level == "info":
        yield Finding(Level.OK, Item.LOGS, "service.log", "one JSON object a line, from info on")


def _plugins(configuration: Configuration) -> Iterator[Finding]:
    for each in configuration.broken:
        yield Finding(Level.WARNING, Item.MACHINE, each.source, f"the plugin was left out: {each.reason}")


def _tls(receiver: Receiver[Any], config: ListenerConfig) -> Iterator[Finding]:
    where = f"receivers.{receiver.id}"
    if config.tls.certificate and config.tls.key:
        yield Finding(Level.OK, Item.TLS, f"{where}.tls", "HTTPS")
        for file in (config.tls.certificate, config.tls.key):
            if not file.exists():
                yield Finding(Level.PROBLEM, Item.TLS, f"{where}.tls", f"there is no file {file}")
    elif config.host.startswith(_LOOPBACK):
        yield Finding(Level.OK, Item.TLS, f"{where}.host", f"{config.host} is reached from this machine alone")
    elif config.trusted_proxies:
        yield Finding(Level.OK, Item.TLS, f"{where}.trusted_proxies", "behind a proxy, which is to speak TLS")
    else:
        what = f"keys come in clear to {config.host}:{config.port}"
        advice = "set tls, or host to 127.0.0.1 and have a proxy speak TLS, or name it in trusted_proxies"
        yield Finding(Level.PROBLEM, Item.TLS, where, what, advice)


def _tls_keys(component: Component[Any]) -> Iterator[Finding]:
    """Private keys, of a listener or of a client, as every component's configuration names them."""
    for name, value in component.config:
        if isinstance(value, TLSConfig) and value.key is not None:
            yield from look_at_mode(f"{component.kind}s.{component.id}.{name}.key", value.key, Item.TLS)


def _secret_files(configuration: Configuration) -> Iterator[Finding]:
    for where, file in secret_files(configuration):
        yield from look_at_mode(where, file, Item.KEYS)


def _access(pipeline: Pipeline) -> Iterator[Finding]:
    if not pipeline.takes_from_outside:
        return
    where = f"service.pipelines.{pipeline.id}.processors"
    if not any(each.authenticates for each in pipeline.processors):
        yield Finding(Level.PROBLEM, Item.KEYS, where, "nobody is asked for a key", "add auth")
    if any(each.limits for each in pipeline.processors):
        yield Finding(Level.OK, Item.LIMITS, where, "every key is held to its rate limit")
    else:
        yield Finding(Level.PROBLEM, Item.LIMITS, where, "no key is held to a rate limit", "add rate_limit")


def _settings(pipeline: Pipeline) -> Iterator[Finding]:
    settings, where = pipeline.journal.settings, f"service.pipelines.{pipeline.id}"
    if settings.durability is not Durability.POWER_LOSS:
        what = f"the journal's durability is {str(settings.durability)!r}, so what was answered 200 can be lost"
        yield Finding(Level.PROBLEM, Item.DATA, where, what, f"must be {str(Durability.POWER_LOSS)!r}")
    if settings.reserve < LEAST_RESERVE:
        what = f"the journal's reserve is {settings.reserve / 2**20:.0f} MiB, too little to delete on a full disk"
        yield Finding(Level.WARNING, Item.DATA, where, what, "METRICS_JOURNAL_RESERVE=64MiB")


def _journal(path: Path, settings: JournalSettings) -> Iterator[Finding]:
    """What is in the file, if there is one."""
    where = f"journal {path}"
    if not path.exists():
        return
    yield from look_at_place(where, path)
    try:
        with looking_at(path) as connection:
            connection.execute("BEGIN")
            lines = books.lines(connection)
            ((letters,),) = connection.execute("SELECT count(*) FROM dead_letters")
            ((held,),) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM state")
    except (sqlite3.Error, OSError) as error:
        yield Finding(Level.PROBLEM, Item.DATA, where, f"cannot be read: {error}", "the log of the service says more")
        return
    if letters:
        advice = "metrics-service dead-letters list"
        yield Finding(Level.WARNING, Item.DATA, where, f"{letters} dead letters wait for a decision", advice)
    if any(line.difference for line in lines):
        yield Finding(Level.PROBLEM, Item.DATA, where, "the books do not balance", "metrics-service books")
    if held > settings.max_bytes / 2:
        behind = max(lines, key=lambda line: line.pending, default=None)
        what = f"is {held / settings.max_bytes:.0%} full{f', {behind.exporter} is behind' if behind else ''}"
        yield Finding(Level.WARNING, Item.DATA, where, what, "at 100% pushes are refused")
    else:
        pending = max((line.pending for line in lines), default=0)
        yield Finding(Level.OK, Item.DATA, where, f"{pending} items wait for the slowest exporter")


def _folders(pipelines: list[Pipeline], files: Mapping[str, Path]) -> dict[Path, list[Pipeline]]:
    folders: dict[Path, list[Pipeline]] = {}
    for pipeline in pipelines:
        folders.setdefault(files[pipeline.id].parent, []).append(pipeline)
    return folders


def _disk(pipelines: list[Pipeline], files: Mapping[str, Path]) -> Iterator[Finding]:
    """Whether the journals may grow to their limits before the disk is full."""
    for folder, sharing in _folders(pipelines, files).items():
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        held = sum(files[each.id].stat().st_size for each in sharing if files[each.id].exists())
        limits = sum(each.journal.settings.max_bytes for each in sharing)
        needed = max(0, limits - held) + max(each.journal.settings.reserve for each in sharing)
        free = shutil.disk_usage(there).free
        what = f"{free / 1e9:.1f} GB are free, and the journals may take {needed / 1e9:.1f} GB more"
        advice = "a larger disk, or a smaller processors.batch.max_bytes"
        yield from look_at_place(f"journal {folder}", folder)
        if free < needed:
            yield Finding(Level.WARNING, Item.DATA, f"journal {folder}", what, advice)
        else:
            yield Finding(Level.OK, Item.DATA, f"journal {folder}", what)


def _clock(files: list[Path]) -> Iterator[Finding]:
    newest = max((each for each in files if each.exists()), key=_changed, default=None)
    if newest is not None and _changed(newest) > time.time() + CLOCK_TOLERANCE:
        hours = (_changed(newest) - time.time()) / 3600
        what = f"was written {hours:.1f} hours in the future: the clock was put back, or is wrong"
        yield Finding(Level.PROBLEM, Item.MACHINE, str(newest), what, "timedatectl status")


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _process(files: list[Path], listeners: list[ListenerConfig]) -> Iterator[Finding]:
    """The service's process if it runs, else this one, which is to be started as that one will be."""
    running = next(filter(None, (lock_holder(each.with_suffix(".lock")) for each in files)), None)
    where = f"process {running}" if running else "user"
    if Path(f"/proc/{running or 'self'}").stat().st_uid == 0:
        what = "the service runs as root" if running else "this is root, and the service is another user's affair"
        yield Finding(Level.WARNING, Item.MACHINE, where, what, "a user of its own, for doctor too")
    _, hard = (
        resource.prlimit(running, resource.RLIMIT_NOFILE) if running else resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    needed = sum(each.max_connections for each in listeners) + OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        what = f"may have {hard} files open, and the listeners' max_connections want {needed}"
        yield Finding(Level.WARNING, Item.MACHINE, where, what, "LimitNOFILE= of the unit, or ulimit -n")
    if running:
        yield Finding(Level.OK, Item.MACHINE, where, "the service runs")
