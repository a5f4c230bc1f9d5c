"""`run --reload`: a change of a plugin, of the configuration or of a variable is seen; a mistake is waited for to be mended."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.running import OURS, command, free_port

pytestmark = pytest.mark.timeout(120)

PLUGIN = """
from pipeline import Access, ComponentConfig, Declaration, Extension, Response, Route, hookimpl

class Config(ComponentConfig):
    says: str = "nothing"

class Hello(Extension[Config]):
    async def answer(self, request):
        return Response(f"VERSION {self.config.says}", content_type="text/plain")

    def routes(self):
        return [Route("GET", "/hello", Access.PUBLIC, self.answer, "Says hello")]

@hookimpl
def declare_components():
    return [Declaration("hello", Hello, Config)]
"""
CONFIG = """
extends: development
extensions: {hello: {says: "${env:GREETING:-one}"}}
service: {extensions: [database, api_keys, retention, hello]}
"""


@pytest.fixture
def base(tmp_path: Path) -> Iterator[str]:
    """Where a service listens that is run with `--reload`."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "hello.py").write_text(PLUGIN.replace("VERSION", "first"))
    (tmp_path / "my.yaml").write_text(CONFIG)
    (tmp_path / "variables").write_text("GREETING=one\n")
    port = str(free_port())
    arguments = ["--reload", "--plugins-dir", "plugins", "--env-file", "variables"]
    called, environ = command(tmp_path, *arguments, config="my.yaml", METRICS_SERVICE_PORT=port)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(called, env=environ, cwd=tmp_path, stderr=log, stdout=log)
    try:
        yield f"http://127.0.0.1:{port}/hello"
    finally:
        running.terminate()
        ended = running.wait(30)
        log_text = (tmp_path / "log").read_text()
    assert ended == 0, log_text
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/hello")


def wait_for(base: str, text: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(base, timeout=5).text == text:
                return
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def wait_for_line(log: Path, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_what_is_changed_is_seen_and_a_mistake_is_waited_for_to_be_mended(tmp_path: Path, base: str) -> None:
    wait_for(base, "first one")
    plugin, log = tmp_path / "plugins" / "hello.py", tmp_path / "log"
    plugin.write_text(PLUGIN.replace("VERSION", "second"))
    wait_for(base, "second one")
    (tmp_path / "variables").write_text("GREETING=two\n")
    wait_for(base, "second two")
    (tmp_path / "new.yaml").write_text(CONFIG.replace("one", "three").replace("GREETING", "OTHER"))
    (tmp_path / "new.yaml").replace(tmp_path / "my.yaml")  # as many editors save
    wait_for(base, "second three")
    plugin.write_text("this is no Python\n")
    wait_for_line(log, "error: ")
    plugin.write_text(PLUGIN.replace("VERSION", "third"))
    wait_for(base, "third three")
    assert f"changed: {plugin}; starts again\n" in log.read_text()


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError\n")
    ended = subprocess.run(
        [*OURS, "run", "--reload"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}", "PATH": str(Path(sys.executable).parent)},
    )  # fmt: skip
    said = "error: run: --reload watches files with 'watchfiles', which is not installed (pip install watchfiles)\n"
    assert (ended.returncode, ended.stderr) == (2, said)
