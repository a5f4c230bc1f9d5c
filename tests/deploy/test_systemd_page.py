"""A walk through docs/deploy/systemd.md, then through docs/deploy/backup.md, as a new operator: every command, in order."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.books import assert_balanced
from tests.deploy.operator import Operator, lines
from tests.programs import need
from tests.test_docs import DOCS, ROOT
from tests.test_docs_run import push_and_flush, stored

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip"),
]

INSTALL, BACKUP = DOCS / "deploy" / "systemd.md", DOCS / "deploy" / "backup.md"
FIRST = ("A user and its folders", "The program", "Its configuration", "Its database and the first key", "The service")


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Who has typed everything up to a service that runs, and its backups. The tests below go on from each other."""
    for program, package in (("systemctl", "systemd"), ("curl", "curl"), ("sqlite3", "sqlite3")):
        need(program, package)
    operator = Operator(tmp_path_factory.mktemp("machine"))
    try:
        for line in lines(INSTALL, *FIRST, "Backups every night"):
            operator.type(line)
        yield operator
    finally:
        operator.leave()


def restore(operator: Operator) -> None:
    for line in lines(BACKUP, "Restored"):
        operator.type(line)


def test_a_database_is_restored_beside_its_journal_and_then_without_one(operator: Operator) -> None:
    database = operator.place("/var/lib/sqlite/metrics.db")
    push_and_flush(operator.base, operator.key)
    operator.type("sudo systemctl start metrics-service-backup.service")
    with database.open("r+b") as file:
        file.truncate(100)  # an accident
    operator.leave()
    operator.process = None
    restore(operator)
    push_and_flush(operator.base, operator.key)
    assert len(stored(database)) == 3, "the first metric of the page, what came before the backup, what came after"
    # The machine is gone: only the backup is left.
    operator.stop()
    for left in ("metrics-journal", "replaced"):
        subprocess.run(["rm", "-r", database.with_name(left)], check=True)
    restored = [line for line in lines(BACKUP, "Restored") if not line.startswith("sudo systemctl")]
    for line in restored:
        operator.type(line)
    ended = subprocess.run(operator.command(), capture_output=True, timeout=30, check=False)
    assert ended.returncode == 78, "it does not start by itself"
    once, start = lines(BACKUP, "On another machine, without a journal")
    assert "run --accept-journal-reset --config production" in once
    operator.start("--accept-journal-reset")
    operator.stop()
    operator.type(start)
    push_and_flush(operator.base, operator.key)
    assert len(stored(database)) == 3, "what was in the backup, and a new one"
    assert httpx.get(f"{operator.base}/health").status_code == 200


def test_every_command_of_the_pages_does_what_it_is_for(operator: Operator) -> None:
    installed = operator.place("/opt/metrics-service/.venv/bin/python")
    shown = subprocess.run(
        [installed, "-P", "-c", "import pipeline; print(pipeline.__file__)"], capture_output=True, text=True, check=True
    )
    assert Path(shown.stdout.strip()).is_relative_to(operator.root), "the wheel, and not the checkout"
    wanted = operator.place("/etc/systemd/system/multi-user.target.wants/metrics-service.service")
    assert wanted.is_symlink()
    before = len(stored(operator.place("/var/lib/sqlite/metrics.db")))
    push_and_flush(operator.base, operator.key)
    for line in lines(INSTALL, "Is all of it there?"):
        # The operator of this test has put it behind a proxy that is not there; what is left is of the machine.
        out = operator.type(f"{line} || true")
        assert " tls " in out
        assert not re.search(r"^problem +(backups|tls|keys|logs|limits|retention|monitoring) ", out, re.MULTILINE), out
    for line in lines(INSTALL, "The log", "Another configuration"):
        operator.type(line)
    push_and_flush(operator.base, operator.key)
    for line in lines(INSTALL, "Another version"):
        operator.type(line)
    push_and_flush(operator.base, operator.key)
    assert len(stored(operator.place("/var/lib/sqlite/metrics.db"))) == before + 3
    for line in lines(BACKUP, "The drill", "Room, once in a while"):
        out = operator.type(line)
        assert ("ok\n" in out) == ("integrity_check" in line)
    push_and_flush(operator.base, operator.key)
    for line in lines(INSTALL, "Away with it"):
        operator.type(line)
    assert not operator.place("/opt/metrics-service").exists()
    assert not wanted.is_symlink()
    assert len(stored(operator.place("/var/lib/sqlite/metrics.db"))) == before + 4, "the data stays"
    assert not (ROOT / "drill").exists()
    assert_balanced(operator.place("/var/lib/sqlite/metrics-journal").glob("*.db"))
