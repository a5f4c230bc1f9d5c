"""What systemd hears: a datagram socket of ours in its place, and the real process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import systemd
from tests.running import KEY, command, free_port, process

BLOCKING = """
import asyncio, time
from pipeline import ComponentConfig, Declaration, Extension, Host, hookimpl

class Blocking(Extension[ComponentConfig]):
    async def start(self):
        self.host.spawn(self, self.hang)

    async def hang(self):
        while not self.host.health().accepting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        print("hangs", flush=True)
        time.sleep(3600)

@hookimpl
def declare_components():
    return [Declaration("blocking", Blocking, ComponentConfig)]
"""


class Listening:
    """The socket that systemd would listen on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)

    def next(self, seconds: float = 20) -> list[str]:
        """The lines of the next datagram. Raises `TimeoutError`."""
        self.sock.settimeout(seconds)
        return self.sock.recv(65536).decode().split("\n")

    def until(self, line: str) -> list[str]:
        """The first datagram with this line."""
        while line not in (lines := self.next()):
            pass
        return lines


@contextmanager
def listening(address: str) -> Iterator[Listening]:
    there = Listening(address)
    try:
        yield there
    finally:
        there.sock.close()


@pytest.fixture(params=["file", "abstract"])
def there(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listening]:
    name = {"file": str(tmp_path / "notify"), "abstract": f"@metrics-service-{os.getpid()}-{time.monotonic_ns()}"}
    with listening(name[request.param]) as found:
        yield found


def test_systemd_hears_when_it_is_ready_that_it_lives_and_when_it_stops(tmp_path: Path, there: Listening) -> None:
    with process(tmp_path, NOTIFY_SOCKET=there.address, WATCHDOG_USEC="400000") as (service, base):
        ready = there.next()
        assert ready == ["READY=1", "STATUS=accepts pushes"]
        for _ in range(3):
            assert there.next(5) == ["WATCHDOG=1"]
        service.send_signal(signal.SIGTERM)
        assert there.until("STOPPING=1")[1].startswith("STATUS=")
        assert service.wait(20) == 0
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{base}/health")


def test_nothing_is_said_before_the_service_is_healthy_and_none_of_its_failure_to_start(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as there, socket.create_server(("127.0.0.1", 0)) as other:
        taken = {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(other.getsockname()[1])}
        called, environ = command(tmp_path, NOTIFY_SOCKET=there.address, WATCHDOG_USEC="400000", **taken)
        assert subprocess.run(called, env=environ, capture_output=True, timeout=30, check=False).returncode == 69
        with pytest.raises(TimeoutError):
            there.next(0.01)


def signs(there: Listening, seconds: float) -> int:
    """How many signs of life come within this time."""
    deadline, count = time.monotonic() + seconds, 0
    while (left := deadline - time.monotonic()) > 0:
        try:
            count += "WATCHDOG=1" in there.next(left)
        except TimeoutError:
            break
    return count


def test_a_loop_that_hangs_gives_no_more_signs_of_life(tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    (tmp_path / "my.yaml").write_text(
        "extends: production\nextensions: {blocking: }\n"
        "service: {extensions: [database, api_keys, retention, blocking]}\n"
    )
    variables = {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(free_port())}
    with listening(str(tmp_path / "notify")) as there:
        variables |= {"NOTIFY_SOCKET": there.address, "WATCHDOG_USEC": "400000"}
        arguments = ["--plugins-dir", str(tmp_path)]
        called, environ = command(tmp_path, *arguments, config=str(tmp_path / "my.yaml"), **variables)
        with (tmp_path / "log").open("wb") as log:
            service = subprocess.Popen(called, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log)
        try:
            there.until("READY=1")
            there.until("WATCHDOG=1")
            assert service.stdout is not None
            assert service.stdout.readline() == b"hangs\n", (tmp_path / "log").read_text()
            while signs(there, 0.01):
                pass  # those that were on their way
            assert signs(there, 2) == 0
            assert service.poll() is None
        finally:
            service.kill()
            service.communicate()


def test_a_sink_that_is_away_ends_no_signs_of_life_and_shows_in_the_status(tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with listening(str(tmp_path / "notify")) as there:
        variables = {"NOTIFY_SOCKET": there.address, "WATCHDOG_USEC": "400000", "OTEL_OTLP_ENDPOINT": nobody}
        with process(tmp_path, **variables) as (_, base):
            event = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
            httpx.post(f"{base}/metrics", json=event, headers={"X-API-Key": KEY}).raise_for_status()
            while "otlp: cannot deliver" not in "\n".join(lines := there.next()):
                pass
            assert lines[0] == "WATCHDOG=1"
            there.until("WATCHDOG=1")


def test_systemd_hears_of_every_reload_and_how_it_went(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("extends: production\n")
    config, address = str(tmp_path / "my.yaml"), str(tmp_path / "notify")
    with listening(address) as there, process(tmp_path, config=config, NOTIFY_SOCKET=address) as (service, _):
        assert there.next()[0] == "READY=1"
        for text, status in (
            ("extends: production\nextensions: {retention: {days: 7}}\n", "STATUS=accepts pushes"),
            ("extends: nothing\n", "STATUS=accepts pushes; the last reload was refused, the log says why"),
            ("extends: production\n", "STATUS=accepts pushes"),
        ):
            (tmp_path / "my.yaml").write_text(text)
            before = time.monotonic_ns() // 1000
            service.send_signal(signal.SIGHUP)
            began = there.next()
            assert began[0] == "RELOADING=1"
            assert before <= int(began[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
            assert there.next() == ["READY=1", status]


def test_a_line_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(str(tmp_path / "notify")) as there:
        monkeypatch.setenv("NOTIFY_SOCKET", there.address)
        assert systemd.notify("STATUS=no such file:\nREADY=1")
        assert there.next(5) == ["STATUS=no such file: READY=1"]


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative", "/no/such/socket"])
def test_where_nobody_listens_nothing_is_said_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.none() | st.sampled_from(["", "0", "x", "-1", "²"]) | st.integers(1, 10**12), st.sampled_from(["", "1", None])
)
def test_the_watchdog_is_ours_if_it_is_set_for_us(
    monkeypatch: pytest.MonkeyPatch, usec: str | int | None, pid: str | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    expected = usec / 1e6 if isinstance(usec, int) and pid != "1" else None
    assert systemd.watchdog_seconds() == expected
