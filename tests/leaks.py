"""No secret of the tests may be in anything that the run of the tests logged: a pytest plugin that searches all of it.

Kept are the log records of this process, what tests printed, and the logs of the processes that `tests.running.process` starts.
At the end of the session every secret that was marked by `secret` is looked for in all of it; one that is found fails the run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest

SHOWN = 20
"""How many findings are listed."""
ENOUGH = 24
"""So many characters of a secret are too many: one that was cut short is found as well."""
DIGITS = 8
"""Hexadecimal digits of a digest that are too many: with them a weak key can be guessed offline."""
SHORTEST = 12
"""Anything shorter is no secret, but a word that is anywhere."""

_HEXADECIMAL = re.compile(rb"(?<![0-9A-Za-z])[0-9A-Fa-f]{8,64}(?![0-9A-Za-z])")
_HOLDS_SECRET = re.compile(
    r"METRICS_API_KEY_.*(?<!_FILE)|METRICS_ADMIN_KEY|METRICS_PROMETHEUS_KEY|OTEL_EXPORTER_OTLP_HEADERS"
)


def pieces(secrets: Iterable[str]) -> list[bytes]:
    """What is looked for: the beginnings of these secrets."""
    return sorted({secret[:ENOUGH].encode() for secret in secrets if len(secret) >= SHORTEST})


def digests_shown(text: bytes, secrets: Iterable[str]) -> Iterator[bytes]:
    """The beginnings of these secrets' SHA-256 that the text holds: `DIGITS` or more of them, on their own."""
    digests: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for each in secrets:
        digest = hashlib.sha256(each.encode()).hexdigest().encode()
        digests[digest[:DIGITS]].append(digest)
    for token in sorted(set(_HEXADECIMAL.findall(text)), key=len, reverse=True):
        if any(digest.startswith(token.lower()) for digest in digests.get(token[:DIGITS].lower(), ())):
            yield token


def found(log: bytes, secrets: Iterable[str]) -> Iterator[str]:
    """The lines of the log that hold one of these secrets or the beginning of its digest, each once and without it."""
    seen = set()
    secrets = list(secrets)
    for piece in (*pieces(secrets), *digests_shown(log, secrets)):
        at = log.find(piece)
        while at >= 0:
            start, end = log.rfind(b"\n", 0, at) + 1, log.find(b"\n", at)
            line = log[start : end if end >= 0 else len(log)]
            if line not in seen:
                seen.add(line)
                yield line[:400].replace(piece, b"<SECRET>").decode(errors="replace")
            at = log.find(piece, start + len(line))


def check_shown(text: str) -> str:
    """Raise `AssertionError` if this, which is shown without a key, holds a secret or the beginning of its digest; else return it."""
    content = text.encode()
    assert not any(piece in content for piece in pieces(_kept.secrets)), "a secret is shown"
    assert not list(digests_shown(content, _kept.secrets)), "a digest of a key is shown"
    return text


class Kept(logging.Handler):
    """All that was logged, each line behind the test that was running, and the secrets that it must not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: set[str] = set()
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the session

    def keep(self, text: str) -> None:
        """Keep some lines."""
        # Without its parameters, one of which may be the secret.
        test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("[")[0].split(" ")[0].encode()
        self._file.writelines(b"%s: %s\n" % (test, line.encode(errors="replace")) for line in text.splitlines())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record with all that was handed to it, whether or not its message shows it."""
        self.keep(f"{record.getMessage()} {record.__dict__}")
        if record.exc_info:
            self.keep(logging.Formatter().formatException(record.exc_info))

    def read(self) -> bytes:
        """All of it."""
        self._file.seek(0)
        return self._file.read()


_kept = Kept()
_of_workers: list[str] = []
"""What workers have found."""


def secret(value: str) -> str:
    """Mark a secret; gives it."""
    _kept.secrets.add(value)
    return value


def secrets_of(environ: Mapping[str, str]) -> None:
    """Mark what the variables of a service hold that are for secrets."""
    for name, value in environ.items():
        if _HOLDS_SECRET.fullmatch(name):
            secret(value)


def keep_log(log: Path, start: int) -> None:
    """Keep what a process has written to its log, from that byte on."""
    with log.open("rb") as written:
        written.seek(start)
        _kept.keep(written.read().decode(errors="replace"))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Tests that look at what was logged see warnings, unless they ask for more."""
    plugin = session.config.pluginmanager.get_plugin("logging-plugin")
    assert plugin is not None
    plugin.caplog_handler.setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the tests' own client, which says a line a request
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)  # as in production: it quotes digests


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Listen, as in production, again if a test has set up logs for itself."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if _kept not in root.handlers:
        root.addHandler(_kept)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test printed."""
    if report.when == "teardown":
        _kept.keep(report.capstdout + report.capstderr)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search, and fail the run if a secret is found, here or by a worker of pytest-xdist, which can only tell of it."""
    lines = [*found(_kept.read(), _kept.secrets), *_of_workers]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["leaks"] = lines
    elif lines:
        _fail(session, lines)


def _fail(session: pytest.Session, lines: list[str]) -> None:
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.section("secrets in the log", red=True)
        for line in lines[:SHOWN]:
            reporter.write_line(line, red=True)
        reporter.write_line(f"{len(lines)} lines of what the tests logged hold a secret (tests/leaks.py)", red=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended."""
    _of_workers.extend(getattr(node, "workeroutput", {}).get("leaks", ()))
