"""What every user of the machine could read or change is named, once and without what is in it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from pipeline import make_private_folder, warn_if_others_read
from tests.leaks import secret
from tests.plugins.exporters.otlp.certificates import Authority
from tests.running import process, running

log = logging.getLogger("exporter.x")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "every user" in record.getMessage()]


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o444])
def test_a_secret_that_everybody_can_read_is_named(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.touch()
    file.chmod(mode)
    warn_if_others_read(file, log)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("exporter.x", "WARNING")
    assert said(caplog) == [f"{file} holds a secret, and every user of this machine can read it (must be chmod o-r)"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o603])
def test_a_secret_of_its_user_and_group_is_not(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.touch()
    file.chmod(mode)
    warn_if_others_read(file, log)
    warn_if_others_read(tmp_path / "nothing", log)
    assert caplog.records == []


@pytest.mark.parametrize(("mode", "is_named"), [(0o777, True), (0o1777, True), (0o755, False), (0o770, False)])
def test_a_folder_that_everybody_can_write_to_is_named(
    tmp_path: Path, mode: int, is_named: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(mode)
    make_private_folder(folder)
    expected = f"every user of this machine can put files into {folder} (must be chmod o-w)"
    assert said(caplog) == [expected] * is_named


@pytest.mark.anyio
@pytest.mark.parametrize("mode", [0o600, 0o644])
async def test_every_file_with_a_secret_is_looked_at(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = Authority(tmp_path / "tls").sign("localhost")
    files = [key, tmp_path / "admin", tmp_path / "ingest"]
    for file in files[1:]:
        file.write_text(secret(f"the-key-of-{file.name}-that-is-in-a-file"))
    for file in files:
        file.chmod(mode)
    variables = {
        "METRICS_ADMIN_KEY": "",
        "METRICS_ADMIN_KEY_FILE": str(files[1]),
        "METRICS_API_KEY_INGEST_FILE": str(files[2]),
        "METRICS_TLS_CERTIFICATE": str(certificate),
        "METRICS_TLS_KEY": str(key),
        "OTEL_OTLP_ENDPOINT": "https://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
    }
    async with running(tmp_path, config="production", **variables):
        pass
    named = [line.partition(" holds")[0] for line in said(caplog)]
    assert set(named) == ({str(file) for file in files} if mode == 0o644 else set())
    loggers = {record.name for record in caplog.records if "holds a secret" in record.getMessage()}
    assert loggers == ({"serving", "exporter.otlp", "extension.api_keys"} if mode == 0o644 else set())


def open_to_others(folder: Path) -> list[str]:
    """What others can do anything with, or the group can write."""
    return [str(each.relative_to(folder)) for each in folder.rglob("*") if each.lstat().st_mode & 0o027]


def test_whatever_the_umask_nothing_that_the_service_makes_is_for_others(tmp_path: Path) -> None:
    (tmp_path / "service.log").touch(0o600)
    before = os.umask(0)
    try:
        with process(tmp_path, SQLITE_DB_PATH=str(tmp_path / "data" / "metrics.db")):
            made = {each.name for each in (tmp_path / "data").rglob("*")}
            assert {
                "metrics.db",
                "metrics.db-wal",
                "metrics.db.lock",
                "metrics-journal",
                "events.db",
                "events.db-wal",
            } <= made
            assert open_to_others(tmp_path) == []
        (tmp_path / "data" / "of-anybody").touch()  # the negative control
        assert open_to_others(tmp_path) == ["data/of-anybody"]
    finally:
        os.umask(before)


def test_a_stricter_umask_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with process(tmp_path, SQLITE_DB_PATH=str(tmp_path / "data" / "metrics.db")) as (running_, _):
            status = Path(f"/proc/{running_.pid}/status").read_text()
    finally:
        os.umask(before)
    assert "Umask:\t0077" in status


def test_an_env_file_a_file_in_the_configuration_and_root_are_named_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"METRICS_API_KEY_OTHER={secret('the-key-of-another-in-the-env-file')}\n")
    (tmp_path / ".env").chmod(0o644)
    (tmp_path / "key").write_text(secret("the-key-of-who-scrapes-in-a-file-of-its-own"))
    (tmp_path / "key").chmod(0o644)
    with process(tmp_path, "--env-file", ".env", "--set", "exporters.prometheus.key=${file:key}"):
        pass
    lines = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["level"] == "WARNING" and line["logger"] == "service"]
    root = ["runs as root, which nothing needs: give the service a user of its own"] if os.geteuid() == 0 else []
    files = [
        f"{name} holds a secret, and every user of this machine can read it (must be chmod o-r)"
        for name in (".env", "key")
    ]
    assert warnings == [*root, *files]
