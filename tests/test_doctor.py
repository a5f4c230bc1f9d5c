"""`metrics-service doctor`: a configuration for production has nothing wrong with it, and each thing that can be is found."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.findings import file_system
from tests.leaks import secret
from tests.patients import Patient, variables
from tests.running import OURS, process
from tests.test_docs_run import push_and_flush


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a service that was used, has a backup of today, and was stopped."""
    folder = tmp_path_factory.mktemp("used")
    with process(folder, **variables(folder)) as (service, base):
        push_and_flush(base)
        service.terminate()
        assert service.wait(20) == 0
    made = [*OURS, "backup", "--config", "production"]
    subprocess.run(made, env=os.environ | variables(folder), check=True, capture_output=True)
    return folder


@pytest.fixture
def patient(used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Patient:
    """One that is well."""
    (tmp_path / "metrics-journal").mkdir(mode=0o750)
    shutil.copytree(used, tmp_path, dirs_exist_ok=True)
    return Patient(tmp_path, monkeypatch, capsys)


@pytest.fixture
def unborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Patient:
    """One that was never started."""
    return Patient(tmp_path, monkeypatch, capsys)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its time and size, but for what SQLite's readers note that they read."""
    return {
        str(each): (each.stat().st_mtime_ns, each.stat().st_size)
        for each in folder.rglob("*")
        if each.suffix != ".db-shm"
    }


def test_a_configuration_for_production_has_nothing_wrong_with_it_and_nothing_is_touched(patient: Patient) -> None:
    before = listing(patient.folder)
    assert patient.findings() == []
    assert listing(patient.folder) == before
    shown = patient.call("doctor").out
    assert "ok       backups     extensions.database.backups: 1 backups, the newest 0 hours old\n" in shown


def test_beside_a_running_service_it_says_so_and_disturbs_nobody(patient: Patient) -> None:
    with process(patient.folder, **patient.variables) as (service, base):
        push_and_flush(base)
        found = patient.findings()
        shown = patient.call("doctor").out
        push_and_flush(base)
    assert [each for each in found if each["what"] != "the service runs as root"] == []
    assert f"process {service.pid}: the service runs\n" in shown


def test_before_the_first_start_there_is_neither_a_key_nor_a_backup(unborn: Patient) -> None:
    del unborn.variables["METRICS_API_KEY_TEST"]
    assert {each["item"] for each in unborn.findings()} == {"keys", "backups"}
    assert list(unborn.folder.iterdir()) == []


def variable(name: str, value: str) -> Callable[[Patient], None]:
    return lambda patient: patient.variables.update({name: value})


def setting(*settings: str) -> Callable[[Patient], None]:
    return lambda patient: patient.settings.extend(settings)


def layer(text: str) -> Callable[[Patient], None]:
    def write(patient: Patient) -> None:
        (patient.folder / "layer.yaml").write_text(text)
        patient.arguments = ["--config", "layer.yaml"]

    return write


def mode(name: str, bits: int) -> Callable[[Patient], None]:
    return lambda patient: (patient.folder / name).chmod(bits)


def sql(name: str, statement: str) -> Callable[[Patient], None]:
    def change(patient: Patient) -> None:
        with closing(sqlite3.connect(patient.folder / name)) as connection, connection:
            connection.execute(statement)

    return change


def no_key(patient: Patient) -> None:
    del patient.variables["METRICS_API_KEY_TEST"]


def no_backups(patient: Patient) -> None:
    del patient.variables["METRICS_BACKUP_DIR"]


def empty_backups(patient: Patient) -> None:
    shutil.rmtree(patient.folder / "backups")
    (patient.folder / "backups").mkdir(mode=0o750)


def old_backup(patient: Patient) -> None:
    (made,) = (patient.folder / "backups").glob("*.gz")
    made.rename(made.with_name(f"metrics_{datetime.now(UTC) - timedelta(days=3):%Y%m%d_%H%M%S}.db.gz"))


def open_backup(patient: Patient) -> None:
    (made,) = (patient.folder / "backups").glob("*.gz")
    made.chmod(0o644)


def open_key_file(patient: Patient) -> None:
    (patient.folder / "key").write_text(secret("another-key-that-is-long-enough-for-no-warning"))
    (patient.folder / "key").chmod(0o644)
    patient.variables["METRICS_API_KEY_OTHER_FILE"] = str(patient.folder / "key")


def open_env_file(patient: Patient) -> None:
    (patient.folder / "config").write_text("BATCH_SIZE=500\n")
    (patient.folder / "config").chmod(0o644)
    patient.arguments = ["--env-file", "config"]


def open_tls_key(patient: Patient) -> None:
    for name in ("METRICS_TLS_CERTIFICATE", "METRICS_TLS_KEY"):
        patient.variables[name] = str(patient.folder / "pem")
    (patient.folder / "pem").touch(0o644)
    (patient.folder / "pem").chmod(0o644)


def from_the_future(patient: Patient) -> None:
    there = (datetime.now(UTC) + timedelta(hours=5)).timestamp()
    os.utime(patient.folder / "metrics-journal" / "events.db", (there, there))


def no_database(patient: Patient) -> None:
    (patient.folder / "metrics.db").unlink()
    patient.variables["METRICS_DATABASE_CREATE"] = "never"


def damaged_journal(patient: Patient) -> None:
    (patient.folder / "metrics-journal" / "events.db").write_text("this is no database, whatever its name says" * 100)


def unplugged(patient: Patient) -> None:
    (patient.folder / "plugins").mkdir()
    (patient.folder / "plugins" / "bad.py").write_text("import nothing_of_that_name\n")
    patient.arguments = ["--plugins-dir", "plugins"]


LETTER = "INSERT INTO dead_letters (exporter, position, part, items, reason, at_ms, payload) VALUES ('x', 1, 0, 1, 'no', 0, x'')"
WITHOUT = "service: {{pipelines: {{events: {{processors: [{}]}}}}}}\n"
PUBLIC = variable("METRICS_SERVICE_HOST", "0.0.0.0")  # noqa: S104 - never bound

FINDINGS: dict[str, tuple[Callable[[Patient], None], str, str, str]] = {
    "no backups": (no_backups, "problem", "backups", "no folder of backups is set"),
    "empty backups": (empty_backups, "problem", "backups", "there is no backup in "),
    "old backup": (old_backup, "problem", "backups", "the newest backup is 72 hours old"),
    "open backup": (open_backup, "problem", "backups", "every user of this machine can read "),
    "lost backups": (variable("METRICS_BACKUP_DIR", "/no/such"), "problem", "backups", "cannot look into /no/such"),
    "in clear": (PUBLIC, "problem", "tls", "keys come in clear to 0.0.0.0:8890"),
    "no certificate": (
        lambda one: one.variables.update(METRICS_TLS_CERTIFICATE="/no/pem", METRICS_TLS_KEY="/no/key"),
        "problem", "tls", "there is no file /no/pem",
    ),
    "open tls key": (open_tls_key, "problem", "tls", "every user of this machine can read "),
    "no auth": (layer(WITHOUT.format("rate_limit, validate, batch")), "problem", "keys", "nobody is asked for a key"),
    "no keys": (
        no_key, "problem", "keys", "there is no good key",
    ),
    "weak key": (variable("METRICS_API_KEY_OTHER", secret("short-key")), "warning", "keys", "has fewer than 32 characters"),
    "open key file": (open_key_file, "problem", "keys", "every user of this machine can read "),
    "open env file": (open_env_file, "problem", "keys", "every user of this machine can read config"),
    "key not hashed": (
        sql("metrics.db", "INSERT INTO api_keys (key_hash, service_name, created_at) VALUES (printf('%064s', 'a key'), 'x', '2026')"),
        "problem", "keys", "holds what is no SHA-256 of a key",
    ),
    "open scrape": (
        setting("exporters.prometheus.host=0.0.0.0"), "warning", "monitoring", "everybody who reaches 0.0.0.0:9465 can scrape",
    ),
    "weak scrape key": (
        variable("METRICS_PROMETHEUS_KEY", "too-short"), "warning", "monitoring", "has fewer than 32 characters and can be guessed",
    ),
    "no monitoring": (variable("OTEL_PROMETHEUS_ENABLED", "false"), "problem", "monitoring", "no monitoring"),
    "logs for people": (variable("LOG_FORMAT", "text"), "warning", "logs", "'text' is for people"),
    "debug": (variable("LOG_LEVEL", "debug"), "warning", "logs", "'debug' says more than anybody reads"),
    "errors only": (variable("LOG_LEVEL", "error"), "warning", "logs", "'error' hides what comes before an error"),
    "no limits": (layer(WITHOUT.format("auth, validate, batch")), "problem", "limits", "no key is held to a rate limit"),
    "no retention": (
        layer("service: {extensions: [database, api_keys]}\n"), "problem", "retention", "no retention",
    ),
    "open database": (mode("metrics.db", 0o644), "problem", "data", "every user of this machine can read "),
    "open folder": (mode("metrics-journal", 0o777), "problem", "data", "every user of this machine can change "),
    "not durable": (setting("processors.batch.durability=crash"), "problem", "data", "durability is 'crash'"),
    "small reserve": (variable("METRICS_JOURNAL_RESERVE", "1MiB"), "warning", "data", "the journal's reserve is 1 MiB"),
    "small disk": (setting("processors.batch.max_bytes=900TB"), "warning", "data", "the journals may take "),
    "dead letters": (sql("metrics-journal/events.db", LETTER), "warning", "data", "1 dead letters wait for a decision"),
    "books": (sql("metrics-journal/events.db", "UPDATE journaled SET items = 99"), "problem", "data", "the books do not balance"),
    "full journal": (sql("metrics-journal/events.db", "UPDATE state SET bytes = 1900000"), "warning", "data", "is 95% full"),
    "copy of a lost journal": (
        lambda one: (one.folder / "metrics-journal" / "events.db.rescued-20260101T000000Z").touch(0o640), "problem", "data",
        "events.db.rescued-20260101T000000Z holds the content of a file that disappeared",
    ),
    "no database": (no_database, "problem", "data", "does not exist, and the service may not create it"),
    "damaged journal": (damaged_journal, "problem", "data", "cannot be read: file is not a database"),
    "clock": (from_the_future, "problem", "machine", "was written 5.0 hours in the future"),
    "broken plugin": (unplugged, "warning", "machine", "the plugin was left out: ModuleNotFoundError"),
    "few files": (setting("receivers.http.max_connections=999999999"), "warning", "machine", "files open, and the listeners'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_each_thing_that_can_be_wrong_is_found_and_nothing_else(patient: Patient, name: str) -> None:
    spoil, level, item, what = FINDINGS[name]
    if name == "few files" and resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("any number of files may be open")
    spoil(patient)
    found = patient.findings()
    assert [each for each in found if (each["level"], each["item"]) == (level, item) and what in each["what"]], found
    assert {each["item"] for each in found} <= {item, *ALONG.get(name, ())}


ALONG = {"in clear": ["monitoring"]}
"""What a cause has for other consequences."""


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - nothing is made there


@pytest.mark.skipif(file_system(SHARED_MEMORY) != "tmpfs", reason="needs a tmpfs")
def test_data_that_would_end_with_the_machine_is_found(patient: Patient) -> None:
    patient.variables["METRICS_JOURNAL_DIR"] = str(SHARED_MEMORY / "no such folder")
    (found,) = patient.findings()
    assert "is on tmpfs, which ends with the machine" in found["what"]


FAULTY = """
from pipeline import ComponentConfig, Declaration, Extension, hookimpl

class Faulty(Extension[ComponentConfig]):
    def findings(self):
        raise ValueError("something is wrong")

@hookimpl
def declare_components():
    return [Declaration("faulty", Faulty, ComponentConfig)]
"""


def test_a_component_that_cannot_say_is_one_finding(patient: Patient) -> None:
    layer("extensions: {faulty: }\nservice: {extensions: [database, api_keys, retention, faulty]}\n")(patient)
    (patient.folder / "faulty.py").write_text(FAULTY)
    patient.arguments += ["--plugins-dir", "."]
    (found,) = patient.findings()
    assert (found["where"], found["what"]) == (
        "extensions.faulty",
        "cannot be looked at: ValueError: something is wrong",
    )


def test_what_may_not_be_looked_at_is_a_finding(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may look at everything, so what the system would say to another user is said in its place."""
    exists = Path.exists

    def denied(path: Path) -> bool:
        if path.suffix == ".db" and path.parent.name == "metrics-journal":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", denied)
    ended = patient.call("doctor")
    assert ended.code == 1
    assert "events.db: Permission denied (run doctor as the user of the service)" in ended.out


def test_a_configuration_that_is_wrong_is_a_mistake_as_everywhere(patient: Patient) -> None:
    patient.variables["BATCH_SIZE"] = "many"
    ended = patient.call("doctor")
    assert (ended.code, ended.out) == (2, "")
    assert "processors.batch.size: must be a valid integer, got 'many'" in ended.err


def mount_points() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        yield line.split()[1]
