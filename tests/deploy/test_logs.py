"""What the service logs, what Filebeat is told to do with it, and the commands of docs/deploy/logs.md."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
import yaml

from tests.faults.raw import GOOD
from tests.programs import need
from tests.running import ADMIN_KEY, KEY, OURS, free_port, process
from tests.test_docs import DOCS, ROOT, blocks, table

pytestmark = pytest.mark.deploy

PAGE = DOCS / "deploy" / "logs.md"
ALWAYS = {"timestamp": str, "level": str, "logger": str, "message": str}
OF_A_PUSH = {"request_id": str, "service": str, "accepted": int, "rejected": int, "duration_ms": float}
"""The fields that the deployment guide shows, and of which JSON type they are there."""

INPUT = {"type", "id", "enabled"}
INPUTS = {
    "journald": INPUT | {"include_matches.match"},
    "filestream": INPUT | {"paths", "prospector.scanner.symlinks", "parsers"},
}
"""Keys of Filebeat's reference, release 8.17, pages "journald input" and "filestream input"; those of ours, not all."""
PROCESSORS = {
    "decode_json_fields": {"fields", "process_array", "max_depth", "target", "overwrite_keys", "expand_keys"}
    | {"add_error_key", "document_id"},
    "timestamp": {"field", "target_field", "layouts", "timezone", "ignore_missing", "ignore_failure", "test", "id"},
}
"""The same, pages "Decode JSON fields" and "Timestamp"."""
TOP = {"filebeat.inputs", "processors", "output.elasticsearch", "logging.level"}
FILEBEAT: dict[str, Any] = yaml.safe_load((ROOT / "deploy/filebeat/filebeat.yml").read_text(encoding="utf-8"))


def post(base: str, body: bytes = GOOD, key: str = KEY) -> int:
    """The status of a push."""
    return httpx.post(f"{base}/metrics", content=body, headers={"X-API-Key": key}).status_code


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What a service logs that is pushed to, well and badly, refuses, and stops: each line as JSON."""
    folder = tmp_path_factory.mktemp("logs")
    with process(folder, METRICS_RATE_LIMIT="3", LOG_LEVEL="debug") as (running, base):
        assert [post(base), post(base, b"{"), post(base, b'{"service":"test","metrics":[{"type":"x"}]}')] == [
            200,
            400,
            422,
        ]
        assert [post(base), post(base, key="nobody's")] == [429, 401]
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=20) == 0
    return [json.loads(line) for line in (folder / "service.log").read_text().splitlines()]


def test_every_line_is_an_object_with_the_fields_of_the_guide(lines: list[dict[str, Any]]) -> None:
    assert len(lines) > 8
    for line in lines:
        assert {name: type(line[name]) for name in ALWAYS} == ALWAYS
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
        assert line["level"] in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def test_a_push_has_all_fields_of_the_guide(lines: list[dict[str, Any]]) -> None:
    (processed,) = [line for line in lines if line["message"] == "Processed metrics"]
    assert {name: type(processed[name]) for name in OF_A_PUSH} == OF_A_PUSH
    assert (processed["service"], processed["accepted"], processed["rejected"]) == ("test", 1, 0)
    refused = [line for line in lines if line["message"] == "Refused metrics"]
    assert [line["status"] for line in refused] == [400, 422, 429, 401]
    assert all(OF_A_PUSH.keys() <= line.keys() for line in refused)


def test_the_page_explains_every_field_that_there_is(lines: list[dict[str, Any]]) -> None:
    explained = {name for cell in table(PAGE, "field") for name in re.findall(r"\w+", cell)}
    assert {name for line in lines for name in line if line["message"] != "ready"} - explained == set()
    assert ALWAYS.keys() | OF_A_PUSH.keys() <= explained


def unknown(config: dict[str, Any]) -> Iterator[str]:
    """What a configuration says that is no setting of Filebeat's, or one that is deprecated."""
    yield from config.keys() - TOP
    for each in config["filebeat.inputs"]:
        yield from each.keys() - INPUTS.get(each["type"], set())
        for parser in each.get("parsers", []):
            yield from parser.keys() - {"container", "ndjson"}
            yield from parser.get("container", {}).keys() - {"stream", "format"}
    for processor in config.get("processors", []):
        for name, options in processor.items():
            yield from options.keys() - PROCESSORS.get(name, set())


def test_filebeat_is_told_what_it_knows() -> None:
    assert list(unknown(FILEBEAT)) == []
    old = {"filebeat.inputs": [{"type": "log", "paths": [], "json.keys_under_root": True}]}
    assert set(unknown(old)) == {"type", "paths", "json.keys_under_root"}, "the control"


def test_filebeat_reads_where_the_service_writes_and_each_input_has_a_name_of_its_own() -> None:
    inputs = FILEBEAT["filebeat.inputs"]
    assert len({each["id"] for each in inputs}) == len(inputs)
    (read,) = [each for each in inputs if each["enabled"]]
    assert (read["type"], read["include_matches.match"]) == ("journald", ["_SYSTEMD_UNIT=metrics-service.service"])


def test_filebeat_puts_our_fields_where_no_field_of_its_schema_is(lines: list[dict[str, Any]]) -> None:
    decode, stamp = (next(iter(each.values())) for each in FILEBEAT["processors"])
    assert decode["target"] == "metrics_service"
    assert stamp["field"] == "metrics_service.timestamp"
    layout = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"  # 2006-01-02T15:04:05.999Z, as Go reads it
    assert stamp["layouts"] == ["2006-01-02T15:04:05.999Z"]
    assert all(re.fullmatch(layout, text) for text in [*stamp["test"], *(line["timestamp"] for line in lines)])


COMMANDS = [line for text in blocks(PAGE, "bash") for line in text.splitlines()]
NOT_HERE = re.compile(r"^(sudo (filebeat|cp|systemctl|chown)|systemctl) ")
"""What needs Filebeat, systemd or a user of its own."""


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A service whose database another program holds, and with a key that is over its limit: what the page's words are there."""
    folder, series = tmp_path_factory.mktemp("troubled"), free_port()
    (folder / "config").write_text('BATCH_SIZE="500"\n')
    here = {"DB_CONNECTION_TIMEOUT": "0.2", "FLUSH_INTERVAL_SECONDS": "0.2", "OTEL_PROMETHEUS_PORT": str(series)}
    with (
        process(folder, METRICS_RATE_LIMIT="2", **here) as (_, base),
        closing(sqlite3.connect(folder / "metrics.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert [post(base) for _ in range(3)] == [200, 200, 429]
        deadline = time.monotonic() + 20
        while "database is locked" not in (folder / "service.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield {
            "journalctl -u metrics-service -o cat": "cat service.log",
            "journalctl -u metrics-service": "cat service.log",
            " -n 20": " | tail -n 20",
            "/var/lib/sqlite": str(folder),
            "/etc/metrics-service/config": str(folder / "config"),
            "http://localhost:8890": base,
            "http://localhost:9465": f"http://127.0.0.1:{series}",
            "your-key": KEY,
            "your-admin-key": ADMIN_KEY,
            "sudo ": "",
        }


SHOWN = {
    "journalctl -u metrics-service -o cat | jq": ["processor.rate_limit: rate limit of 2"],
    "journalctl -u metrics-service -n": ['"ready"'],
    'journalctl -u metrics-service | grep "rate limit"': ["exceeded by key"],
    'journalctl -u metrics-service | grep "database': ["exporter.sqlite"],
    "sqlite3": ["ok"],
    "curl -s http://localhost:9465": [
        "process_resident_memory_bytes",
        "listener_connections",
        "journal_bytes",
        "series_",
    ],
    "metrics-service print-config": ["500", "BATCH_SIZE"],
    "metrics-service validate": ["valid"],
    "grep BATCH_SIZE": ["500"],
    "curl -H": ['"rate_limit":2'],
    "curl -s http://localhost:8890/health/ready": ["cannot deliver since"],
    "curl -s -H": ["wal_bytes"],
    "ls -la /var/lib/sqlite/metrics.db-wal": ["metrics.db-wal"],
    "ls -la /var/lib/sqlite/": ["metrics.db"],
    "sudo fuser": ["metrics.db"],
}
"""What the answer to a command of the page holds, by how it begins."""


@pytest.mark.parametrize("line", [line for line in COMMANDS if not NOT_HERE.match(line)])
def test_a_command_of_the_page_shows_what_the_page_says(line: str, troubled: dict[str, str]) -> None:
    for program, package in {"jq": "jq", "fuser": "psmisc", "curl": "curl", "sqlite3": "sqlite3"}.items():
        if re.search(rf"\b{program}\b", line):
            need(program, package)
    called = line
    for old, new in troubled.items():
        called = called.replace(old, new)
    called = re.sub(r"^metrics-service ", " ".join(OURS) + " ", called)
    folder = troubled["/var/lib/sqlite"]
    done = subprocess.run(["sh", "-c", called], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = next(words for start, words in SHOWN.items() if line.startswith(start))
    assert [word for word in expected if word not in done.stdout + done.stderr] == []
