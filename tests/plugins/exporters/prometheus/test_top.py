"""`metrics-service top`, beside a real service."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from plugins.exporters.prometheus.top import top as command
from tests.leaks import secret
from tests.programs import need
from tests.running import KEY, environment, free_port, process

AUTH = {"type": "auth_request", "value": 1.0}
TABLE = 'journal_bytes{pipeline="events"} 1\njournal_limit_bytes{pipeline="events"} 4\n'


def called(port: int, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """How `metrics-service top` is called for the service whose exporter listens there, and in which environment."""
    words = [sys.executable, "-m", "pipeline.cli", "top", "--config", "production", *arguments]
    return words, {**os.environ, **environment(Path("nowhere")), "OTEL_PROMETHEUS_PORT": str(port)}


def top(port: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What one table leaves."""
    words, environ = called(port, "--once", "--interval", "0.3", *arguments)
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def pushing(base: str) -> Iterator[None]:
    """One good push after the other, and one that is not let in."""
    ended = threading.Event()

    def push() -> None:
        with httpx.Client(base_url=base) as client:
            while not ended.is_set():
                for key in (KEY, "nobody's"):
                    document = {"service": "test", "metrics": [AUTH] * 3}
                    client.post("/metrics", json=document, headers={"X-API-Key": key})

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def line(shown: str, component: str) -> str:
    """The first line of that component."""
    found = re.search(rf"^.*\b{component} .*$", shown, re.MULTILINE)
    assert found, shown
    return found[0]


def number(shown: str, component: str, name: str) -> float:
    """The value of that name in the component's line."""
    found = re.search(rf"{re.escape(name)} +([\d.]+)", line(shown, component))
    assert found, shown
    return float(found[1])


def test_once_shows_what_flows_between_two_scrapes(tmp_path: Path) -> None:
    port = free_port()
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)) as (_, base):
        with pushing(base):
            busy = top(port)
        idle = top(port)
    assert (busy.returncode, busy.stderr) == (0, "")
    assert number(busy.stdout, "http", "accepted/s") > 0
    assert number(busy.stdout, "series", "taken/s") > 0
    assert number(busy.stdout, "sqlite", "waiting") > 0
    assert number(busy.stdout, "requests", "2xx/s") > 0
    assert number(busy.stdout, "requests", "4xx/s") > 0
    assert number(busy.stdout, "requests", "mean ms") > 0
    assert re.search(r"refused requests/s: .*too_many_failures ", line(busy.stdout, "http"))
    assert number(idle.stdout, "http", "accepted/s") == 0
    assert number(idle.stdout, "shown  +prometheus", "series") == 1
    assert re.match(rf"http://127\.0\.0\.1:{port}/metrics, over 0\.\d s\n", busy.stdout)


def test_a_key_is_presented_and_another_one_is_a_mistake(tmp_path: Path) -> None:
    port = free_port()
    key = ["--set", f"exporters.prometheus.key={secret('the-key-of-whoever-scrapes')}"]
    with process(tmp_path, *key, OTEL_PROMETHEUS_PORT=str(port)):
        good, none, other = top(port, *key), top(port), top(port, "--set", "exporters.prometheus.key=another")
    assert good.returncode == 0
    assert "accepted/s" in good.stdout
    for refused in (none, other):
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == (
            f"error: http://127.0.0.1:{port}/metrics: the running service has another key than the configuration\n"
        )


def test_a_certificate_and_an_address_that_it_does_not_name_are_no_hindrance(tmp_path: Path) -> None:
    made = f"{need('openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=elsewhere"
    subprocess.run(
        [*made.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=tmp_path, check=True, capture_output=True
    )
    port = free_port()
    tls = {"certificate": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    options = [word for name, path in tls.items() for word in ("--set", f"exporters.prometheus.tls.{name}={path}")]
    everywhere = ["--set", "exporters.prometheus.host=0.0.0.0"]
    with process(tmp_path, *options, OTEL_PROMETHEUS_PORT=str(port)):
        shown = top(port, *options, *everywhere)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"https://127.0.0.1:{port}/metrics, over ")


def test_without_an_end_it_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    port = free_port()
    words, environ = called(port, "--interval", "0.1")
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)):
        started = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert started.stdout is not None
        heads = 0
        while heads < 3:
            heads += started.stdout.readline().startswith("http://")
        started.send_signal(signal.SIGINT)
        rest, errors = started.communicate(timeout=20)
    assert (started.returncode, errors) == (0, "")
    assert "\x1b" not in rest


def test_on_a_terminal_it_is_drawn_in_place(tmp_path: Path) -> None:
    port = free_port()
    words, environ = called(port, "--interval", "0.1")
    ours, theirs = pty.openpty()
    with process(tmp_path, OTEL_PROMETHEUS_PORT=str(port)):
        started = subprocess.Popen(words, env=environ, stdout=theirs, stderr=subprocess.PIPE)
        os.close(theirs)
        shown = b""
        while shown.count(b"\x1b[2J") < 2:
            shown += os.read(ours, 4096)
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=20)
    os.close(ours)
    assert (started.returncode, errors) == (0, b"")
    assert re.match(rb"\x1b\[2J\x1b\[1;1Hhttp://", shown)


def test_where_nobody_listens_is_said(tmp_path: Path) -> None:
    port = free_port()
    nobody = top(port)
    assert (nobody.returncode, nobody.stdout) == (69, "")
    assert nobody.stderr == (
        f"error: http://127.0.0.1:{port}/metrics: [Errno 111] Connection refused "
        "(the service of this configuration must be running)\n"
    )


def test_a_configuration_without_prometheus_is_a_mistake() -> None:
    disabled = top(1, "--set", "exporters.prometheus.enabled=false")
    others = ["--set", "exporters.debug.enabled=true", "--set", "service.pipelines.metrics.exporters=[debug]"]
    unused = top(1, *others)
    for none in (disabled, unused):
        assert (none.returncode, none.stdout) == (2, "")
        assert none.stderr.endswith("has an enabled exporter of the type 'prometheus', which `top` asks\n")


@pytest.mark.parametrize("interval", ["0", "-1", "inf", "soon"])
def test_an_interval_that_is_none_is_a_mistake(interval: str) -> None:
    wrong = CliRunner().invoke(command, ["--interval", interval])
    assert wrong.exit_code == 2
    assert "Invalid value for '--interval'" in wrong.output


@contextmanager
def answering(*answers: tuple[int, str]) -> Iterator[int]:
    """Somebody who answers one request after the other so, then always as the last; yields the port."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_a_service_that_starts_is_waited_for() -> None:
    starting = (503, "starting\n")
    with answering(starting, starting, (200, TABLE)) as port:
        waited = top(port)
    assert (waited.returncode, waited.stderr) == (0, f"http://127.0.0.1:{port}/metrics: the service is starting\n")
    assert number(waited.stdout, "journal", "full %") == 25


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, ""), "HTTP Error 404: Not Found"),
        ((200, "<html>"), "the answer is not the telemetry of a metrics-service"),
        ((200, "journal_bytes{ 1\n"), "the answer is not the telemetry of a metrics-service"),
    ],
)
def test_somebody_else_on_the_port_is_said(answer: tuple[int, str], said: str) -> None:
    with answering(answer) as port:
        wrong = top(port)
    assert (wrong.returncode, wrong.stdout) == (69, "")
    assert wrong.stderr == f"error: http://127.0.0.1:{port}/metrics: {said}\n"
