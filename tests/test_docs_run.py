"""What the documentation shows, done: the README's commands, the smallest plugin, every exit code, restoring a backup."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import reduce
from pathlib import Path

import httpx
import pytest

from pipeline.files import FileLock
from tests.programs import need
from tests.running import KEY, environment, free_port, process, running, wait_until_healthy
from tests.test_docs import DOCS, README, ROOT, blocks, table

EVENT = {"type": "custom", "value": 1}


def push_and_flush(base: str, key: str = KEY) -> None:
    """Push one metric, and wait until it is stored."""
    headers = {"X-API-Key": key}
    answer = httpx.post(f"{base}/metrics", headers=headers, json={"service": "test", "metrics": [EVENT]})
    assert answer.status_code == 200, answer.text
    assert httpx.post(f"{base}/flush", headers=headers).json()["status"] == "success"


def stored(database: Path, column: str = "value") -> list[object]:
    """That column of every row."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return [value for (value,) in connection.execute(f"SELECT {column} FROM metrics")]


@contextmanager
def made(folder: Path, port: int) -> Iterator[list[str]]:
    """`make run` in a folder of its own, on what is installed already; yields the commands that it prints."""
    for name in ("requirements-dev.lock", "pyproject.toml", "installed"):
        (folder / name).touch()
    installed = [f"BIN={Path(sys.executable).parent}", "INSTALLED=installed"]
    command = ["make", "-f", str(ROOT / "Makefile"), "run", *installed]
    # Not as a part of the `make test` that may have started us.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    environ |= {"METRICS_SERVICE_PORT": str(port), "OTEL_PROMETHEUS_PORT": str(free_port())}
    with (folder / "service.log").open("wb") as log:
        running = subprocess.Popen(
            command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", running, folder / "service.log")
        assert running.stdout is not None
        shown: list[str] = []
        while len(shown) < 3:
            line = running.stdout.readline().decode()
            assert line, "make run has ended"
            shown += [line.strip()] if line.startswith("curl") else []
        yield shown
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=20)


def shell(command: str, folder: Path, **variables: str) -> str:
    """What a command line prints to standard output."""
    environ = {**os.environ, **variables}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environ, check=True, capture_output=True, text=True
    ).stdout


def same_every_time(text: str) -> str:
    return re.sub(r"req_[0-9a-f]{16}", "req_*", text).strip()


def test_the_commands_of_the_readme_and_of_make_run_do_what_the_readme_shows(tmp_path: Path) -> None:
    need("curl")
    need("sqlite3")
    port = free_port()
    _, push, rest, _ = blocks(README, "sh")
    with made(tmp_path, port) as (printed_push, printed_scrape, printed_flush):
        _, _, key = (tmp_path / ".env").read_text().strip().partition("=")
        scraped = re.findall(r"localhost:\d+", printed_scrape)[0]
        there = {"localhost:8890": f"127.0.0.1:{port}", "localhost:9465": scraped}
        answers = {
            command: shell(reduce(lambda line, each: line.replace(*each), there.items(), command), tmp_path, KEY=key)
            for command in (push, *rest.splitlines())
        }
        first, *others = map(same_every_time, answers.values())
        assert [first] == [same_every_time(text) for text in blocks(README, "json")]
        assert ["\n".join(others)] == [text.strip() for text in blocks(README, "text")]
        assert '"accepted":1' in shell(printed_push, tmp_path)
        assert shell(printed_scrape, tmp_path).strip().endswith(" 2.0")
        assert shell(printed_flush, tmp_path).count("test|") == 2


def test_the_scripts_of_the_deployment_guide_prepare_what_the_service_uses(tmp_path: Path) -> None:
    environ = {**os.environ, **environment(tmp_path)}

    def script(name: str, *words: str) -> str:
        command = [sys.executable, str(ROOT / name), *words]
        return subprocess.run(command, cwd=tmp_path, env=environ, check=True, capture_output=True, text=True).stdout

    assert "to be applied: 0001_metrics" in script("migrate.py", "status")
    script("migrate.py", "up")
    assert "to be applied: nothing" in script("migrate.py", "status")
    (key,) = set(re.findall(r"mcp_metrics_\S+", script("create_api_key.py")))
    with process(tmp_path) as (_, base):
        push_and_flush(base, key)
    assert stored(tmp_path / "metrics.db", "key_service") == ["default"]


def test_a_second_signal_ends_the_process_at_once_and_loses_nothing(tmp_path: Path) -> None:
    headers = {"X-API-Key": KEY}
    with process(tmp_path, "--set", "service.stop_timeout=1h") as (service, base):
        assert httpx.post(f"{base}/metrics", headers=headers, json={"service": "test", "metrics": [EVENT]}).is_success
        host, _, port = base.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as slow:
            # A request whose body never ends keeps the stop waiting, so that there is a second signal to send.
            head = f"POST /metrics HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
            slow.sendall(head.encode())
            assert slow.recv(100).startswith(b"HTTP/1.1 100")
            service.terminate()
            wait_for_line(tmp_path / "service.log", '"stopping"')
            service.terminate()
            assert service.wait(timeout=5) == -signal.SIGTERM
    with process(tmp_path) as (_, base):
        push_and_flush(base)
    assert stored(tmp_path / "metrics.db") == [1.0, 1.0]


def wait_for_line(log: Path, text: str) -> None:
    """Return once the log holds that text."""
    deadline = time.monotonic() + 10
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


def test_the_smallest_plugin_runs(tmp_path: Path) -> None:
    (plugin, *_), (configuration, *_) = blocks(DOCS / "plugins.md", "python"), blocks(DOCS / "plugins.md", "yaml")
    (tmp_path / "my_plugins").mkdir()
    (tmp_path / "my_plugins" / "stamp.py").write_text(plugin)
    (tmp_path / "my.yaml").write_text(configuration)
    with process(tmp_path, "--plugins-dir", "my_plugins", config="my.yaml") as (_, base):
        push_and_flush(base)
    assert stored(tmp_path / "metrics.db", "json_extract(dimensions, '$.region')") == ["eu-west"]


def call(folder: Path, *words: str, **variables: str) -> int:
    """Run a command that ends by itself, with a line that says why: its exit code."""
    environ = {**os.environ, **environment(folder), "METRICS_SERVICE_HOST": "127.0.0.1", **variables}
    command = [sys.executable, "-m", "pipeline.cli", *words]
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=30)
    assert ended.stderr.splitlines()[-1].startswith(("error: ", "unhealthy: ")), ended.stderr
    return ended.returncode


def stopped_as_asked(folder: Path) -> int:
    with process(folder) as (service, _):
        service.terminate()
        return service.wait(timeout=20)


def nobody_healthy(folder: Path) -> int:
    return call(folder, "healthcheck", METRICS_SERVICE_PORT=str(free_port()))


def wrong_value(folder: Path) -> int:
    return call(folder, "run", "--set", "receivers.http.port=many")


def port_in_use(folder: Path) -> int:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        return call(folder, "run", METRICS_SERVICE_PORT=str(other.getsockname()[1]))


def faulty_plugin(folder: Path) -> int:
    (folder / "faulty.py").write_text(FAULTY)
    lists = "{metrics: {processors: [faulty, batch]}}"
    (folder / "my.yaml").write_text(
        f"extends: development\nprocessors: {{faulty: }}\nservice: {{pipelines: {lists}}}\n"
    )
    return call(folder, "run", "--plugins-dir", str(folder), "--config", "my.yaml")


def data_in_use(folder: Path) -> int:
    lock = FileLock(folder / "metrics.db.lock")
    lock.acquire()
    try:
        return call(folder, "run", METRICS_SERVICE_PORT=str(free_port()))
    finally:
        lock.release()


def journal_lost(folder: Path) -> int:
    with process(folder) as (_, base):
        push_and_flush(base)
    shutil.rmtree(folder / "metrics-journal")
    return call(folder, "run", METRICS_SERVICE_PORT=str(free_port()))


FAULTY = """
from pipeline import ComponentConfig, Declaration, Processor, Signal, hookimpl


class Faulty(Processor[ComponentConfig]):
    async def start(self) -> None:
        raise ValueError("something is wrong")


@hookimpl
def declare_components() -> list[Declaration]:
    return [Declaration("faulty", Faulty, ComponentConfig, takes=frozenset(Signal))]
"""

EXITS: dict[int, Callable[[Path], int]] = {
    0: stopped_as_asked,
    1: nobody_healthy,
    2: wrong_value,
    69: port_in_use,
    70: faulty_plugin,
    73: data_in_use,
    78: journal_lost,
}


@pytest.mark.parametrize("code", EXITS)
def test_each_exit_code_that_is_explained_is_what_a_service_manager_sees(code: int, tmp_path: Path) -> None:
    a_disk_that_fails = {74}  # tests/faults/test_io_error.py
    assert {int(each) for each in table(DOCS / "operating.md", "exit code")} == EXITS.keys() | a_disk_that_fails
    assert EXITS[code](tmp_path) == code


PROXIED = {
    "OTEL_OTLP_ENDPOINT": "https://collector.example",
    "HTTPS_PROXY": "ftp://proxy",
    "NO_PROXY": "",
    "no_proxy": "",
}
WAITS_FOR_A_PERSON: dict[str, tuple[list[str], dict[str, str]]] = {
    "pre-shared key": ([], {"METRICS_API_KEY_OTHER_FILE": "/nowhere"}),
    "HTTPS_PROXY": ([], PROXIED),
    "`auth`": (["--set", "service.pipelines.events.processors=[validate, batch]"], {}),
    "certificate": ([], {"METRICS_TLS_CERTIFICATE": "/nowhere", "METRICS_TLS_KEY": "/nowhere"}),
    "`migrate: check`": (["--set", "extensions.database.migrate=check"], {}),
}


@pytest.mark.parametrize("what", WAITS_FOR_A_PERSON)
def test_what_waits_for_a_person_is_explained_and_ends_with_78(what: str, tmp_path: Path) -> None:
    assert what.lower() in table(DOCS / "operating.md", "exit code")["78"].lower()
    words, variables = WAITS_FOR_A_PERSON[what]
    assert call(tmp_path, "run", *words, METRICS_SERVICE_PORT=str(free_port()), **variables) == 78


@pytest.mark.anyio
async def test_a_backup_that_is_restored_beside_its_journal_gets_what_was_not_stored(tmp_path: Path) -> None:
    database = tmp_path / "metrics.db"
    backup = tmp_path / "backup.db"
    (command,) = [text.strip() for text in blocks(DOCS / "operating.md", "sh") if "VACUUM INTO" in text]
    async with running(tmp_path) as service:
        await service.push({**EVENT, "value": 1})
        await service.flush()
        with closing(sqlite3.connect(database)) as connection:
            found = re.search(r'"(.*)"', command)
            assert found
            connection.execute(found[1].replace("backup.db", str(backup)))
    async with running(tmp_path, "processors.batch.flush_interval=1h", "processors.batch.size=1000") as service:
        await service.push({**EVENT, "value": 2})
    for each in (database, Path(f"{database}-wal"), Path(f"{database}-shm")):
        each.unlink(missing_ok=True)
    shutil.copy(backup, database)
    async with running(tmp_path) as service:
        await service.push({**EVENT, "value": 3})
        await service.flush()
    assert stored(database) == [1.0, 2.0, 3.0]
