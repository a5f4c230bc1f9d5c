"""Save the content of files that are gone from their paths while the service still has them open.

gone or replaced      then
folder                every database in it is copied to FOLDER.rescued-TIME
database              it is copied to FILE.rescued-TIME, with the content of its write-ahead log; a log beside another database is renamed
write-ahead log       its content is moved into the database
any other file        nothing: the next start creates it again

A start refuses to run beside a copy: only a person can tell whether the copy or the present file is right.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio

from pipeline.errors import StartError
from pipeline.watched_files import Fault, Problem, Role, WatchedFiles

RESCUED = "rescued"
NOT_SAVED = ".not-saved"
"""The suffix of a file that stands for a copy that could not be made, and says why."""
REPLACED = 78
"""EX_CONFIG of sysexits.h: a person must decide."""
RESCUE_SECONDS = 600.0
"""How long one database may take."""
_GONE = (Problem.MISSING, Problem.REPLACED)


@dataclass
class Rescued:
    """What was saved, and what to do. Sentences without a full stop."""

    said: list[str] = field(default_factory=list)
    moves: dict[Path, Path] = field(default_factory=dict)
    """Each copy with the path at which it belongs."""

    def __str__(self) -> str:
        parts = list(self.said)
        parts += [
            f"put {place} back and delete {copy}, or move {copy} to {place}, then start the service"
            for copy, place in self.moves.items()
        ]
        return "; ".join(parts)


async def rescue(found: Sequence[tuple[WatchedFiles, Sequence[Fault]]], now: datetime) -> Rescued:
    """Save all that can be read of what is gone, the databases in the order given. Raises nothing."""
    rescued, stamp = Rescued(), f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
    for files, faults in found:
        by_role = {fault.role: fault.problem for fault in faults}
        if by_role.get(Role.FOLDER) in _GONE or by_role.get(Role.DATABASE) in _GONE:
            await _copy(files, stamp, rescued, replaced=by_role.get(Role.DATABASE) is Problem.REPLACED)
        elif by_role.get(Role.DATABASE) is None and by_role.get(Role.LOG) in _GONE:
            await _move_log(files, stamp, rescued, replaced=by_role[Role.LOG] is Problem.REPLACED)
        else:
            await _give_up(files, faults, stamp, rescued)
    return rescued


async def _give_up(files: WatchedFiles, faults: Sequence[Fault], stamp: str, rescued: Rescued) -> None:
    for fault in faults:
        if fault.role not in (Role.DATABASE, Role.LOG):
            continue
        said = f"the former content of {fault.path} is lost"
        rescued.said.append(said)
        if fault.problem is Problem.OVERWRITTEN:
            _set_aside(files, stamp, rescued)
        if fault.role is Role.DATABASE and fault.problem is not Problem.UNKNOWN and not files.can_repair:
            rescued.said.append(f"restore a backup of {fault.path}, or make sure that the file is right")
            with suppress(OSError):
                await anyio.to_thread.run_sync(_note, files.database, stamp, f"{said}: it {fault.problem.value}")


async def _copy(files: WatchedFiles, stamp: str, rescued: Rescued, *, replaced: bool) -> None:
    try:
        with anyio.fail_after(RESCUE_SECONDS):
            place, copy, target = await anyio.to_thread.run_sync(_target, files.database, stamp)
            unfinished = target.with_name(f".{target.name}.unfinished")
            try:
                await files.copy(unfinished)
                await anyio.to_thread.run_sync(_finish, unfinished, target)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
    except Exception as error:  # it is the last thing that this process does
        said = f"the content of {files.database} cannot be saved: {str(error) or type(error).__name__}"
        rescued.said.append(said)
        with suppress(OSError):  # the next start must not begin with an empty database as if nothing had happened
            await anyio.to_thread.run_sync(_note, files.database, stamp, said)
        return
    rescued.said.append(f"the content of {files.database} was saved as {target}")
    rescued.moves[copy] = place
    if replaced:  # SQLite would apply the log to whatever database is beside it
        _set_aside(files, stamp, rescued)


async def _move_log(files: WatchedFiles, stamp: str, rescued: Rescued, *, replaced: bool) -> None:
    try:
        with anyio.fail_after(RESCUE_SECONDS):
            whole = files.log_is_whole() and await files.checkpoint()
    except Exception:  # then it is copied
        whole = False
    if not whole:
        await _copy(files, stamp, rescued, replaced=False)
    else:
        rescued.said.append(f"the content of {files.log} was moved into {files.database}")
    if replaced:
        _set_aside(files, stamp, rescued)


def _set_aside(files: WatchedFiles, stamp: str, rescued: Rescued) -> None:
    """Rename the log: it does not belong to the database beside it."""
    path = files.log
    with suppress(OSError):
        files.index.unlink()  # the next start creates it
    aside = _free(path.with_name(f"{path.name}.replaced-{stamp}"))
    with suppress(FileNotFoundError):
        try:
            path.rename(aside)
        except FileNotFoundError:
            raise
        except OSError as error:
            rescued.said.append(f"{path} cannot be renamed ({error.strerror}): delete it before the next start")
        else:
            rescued.said.append(f"{path} was renamed to {aside}")


def _target(path: Path, stamp: str) -> tuple[Path, Path, Path]:
    """The first part of a path that is missing, or the whole path; beside it, what to call its copy; and the copy of the file itself."""
    place = next((each for each in reversed(path.parents) if not each.exists()), path)
    copy = place.with_name(f"{place.name}.{RESCUED}-{stamp}")
    if place == path:
        copy = _free(copy)
        return place, copy, copy
    target = copy / path.relative_to(place)
    for folder in reversed([each for each in target.parents if not each.exists()]):
        folder.mkdir(mode=0o750, exist_ok=True)
    return place, copy, _free(target)


def _note(path: Path, stamp: str, said: str) -> None:
    Path(f"{_target(path, stamp)[2]}{NOT_SAVED}").write_text(f"{said}\n", encoding="utf-8")


def _free(path: Path) -> Path:
    """That path, or one beside it that does not exist."""
    number, free = 1, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number + 1}")
    return free


def copy_database(source: sqlite3.Connection, target: Path) -> None:
    """Copy an open database with what its write-ahead log holds, page by page, into a new file. Raises `sqlite3.Error` or `OSError`.

    The same log may be applied to the copy again, unlike to one that VACUUM INTO makes.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))
    copy = sqlite3.connect(target, isolation_level=None, check_same_thread=False)
    try:
        copy.execute("PRAGMA synchronous=OFF")  # `rescue` synchronises it
        copy.execute("PRAGMA journal_mode=OFF")
        source.backup(copy)
    finally:
        copy.close()


def _finish(unfinished: Path, target: Path) -> None:
    for path in (unfinished, unfinished.parent):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    unfinished.rename(target)


def rescued_copies(path: Path) -> Iterator[tuple[Path, Path]]:
    """The copies of a file or of a folder above it that an earlier service left, each with the path at which it belongs."""
    path = path.absolute()
    for place in (path, *path.parents):
        with suppress(OSError):
            for copy in sorted(place.parent.iterdir()):
                if place.name and copy.name.startswith(f"{place.name}.{RESCUED}-"):
                    yield copy, place


def refuse_rescued(paths: Iterable[Path]) -> None:
    """Raise `StartError` with exit code 78 if a copy of one of these files waits for a person."""
    for path in paths:
        for copy, place in rescued_copies(path):
            if copy.suffix == NOT_SAVED:
                saved, remedy = f"could not save its content, says {copy}", f"put {place} back, then delete {copy}"
            else:
                saved = f"saved its content as {copy}"
                remedy = f"move that to {place}; or, if {place} is right as it is, delete {copy} or move it elsewhere"
            raise StartError(f"{path}: the service ended when this file was gone and {saved} ({remedy})", REPLACED)
