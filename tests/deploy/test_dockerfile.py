"""The Dockerfile: built by buildah on a Debian of this machine, and run as Docker would."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.images import ROOT, USER, Container, Images, built, started
from tests.running import environment, free_port, rows
from tests.test_docs_run import push_and_flush

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

SECRET = re.compile(r"mcp_metrics_|(KEY|TOKEN|PASSWORD|SECRET)\w*=\S", re.IGNORECASE)
WRITABLE = "import os; print(*(path for path, _, _ in os.walk('/') if os.access(path, os.W_OK)), sep='\\n')"
EVERYBODYS = re.compile(r"/(proc|sys|dev|tmp|var/tmp|run/lock)(/.*)?")
"""What every Debian lets everybody write, and what is no part of an image."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Both images, built once."""
    with built(tmp_path_factory.mktemp("images")) as images:
        yield images


@pytest.fixture(scope="module")
def container(images: Images) -> Iterator[Container]:
    """A container; each test that stores something brings a volume."""
    with images.container() as container:
        yield container


def variables(port: int) -> dict[str, str]:
    """What an operator sets, on loopback; where the data is, the image says."""
    data = environment(Path("/var/lib/sqlite"))
    del data["SQLITE_DB_PATH"]
    return data | {"METRICS_SERVICE_HOST": "127.0.0.1", "METRICS_SERVICE_PORT": str(port)}


def test_a_container_stores_what_is_pushed_and_is_healthy_as_the_user_1001(
    images: Images, container: Container, tmp_path: Path
) -> None:
    port, volume, config = free_port(), container.new_volume(), images.inspect()["config"]
    environ = variables(port)
    assert config["Cmd"] == ["metrics-service", "run"]
    command = container.command(config["Cmd"], environ, volume)
    with started(command, f"http://127.0.0.1:{port}", tmp_path / "service.log"):
        push_and_flush(f"http://127.0.0.1:{port}")
        assert "healthy" in container.run(config["Healthcheck"]["Test"][1:], environ, volume)
    assert rows(volume / "metrics.db", "SELECT value FROM metrics") == [(1.0,)]
    assert {each.stat().st_uid for each in volume.rglob("*")} == {USER}
    assert container.run(["id", "--user"]).strip() == str(USER)
    made = container.run(["metrics-service", "keys", "create", "--service", "mine"], environ, volume)
    assert "mcp_metrics_" in made
    assert rows(volume / "metrics.db", "SELECT service_name FROM api_keys") == [("mine",)]


def test_the_health_check_fails_where_no_service_runs(container: Container) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        container.run(["metrics-service", "healthcheck"], variables(free_port()))


def test_it_needs_no_capability_and_nothing_but_its_volume_to_write_to(
    images: Images, container: Container, tmp_path: Path
) -> None:
    port, volume = free_port(), container.new_volume()
    environ = variables(port) | dict(each.split("=", 1) for each in images.inspect()["config"]["Env"])
    command = container.read_only(["metrics-service", "run"], environ, volume)
    for stored in (1, 2):
        with started(command, f"http://127.0.0.1:{port}", tmp_path / "service.log") as running:
            push_and_flush(f"http://127.0.0.1:{port}")
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=20) == 0
        assert rows(volume / "metrics.db", "SELECT count(*) FROM metrics") == [(stored,)]


def test_the_service_may_write_to_its_volume_and_to_nothing_else_of_the_image(container: Container) -> None:
    found = container.run(["python3", "-c", WRITABLE]).split()
    assert [path for path in found if not EVERYBODYS.fullmatch(path)] == ["/var/lib/sqlite"]
    assert (container.root / "var/lib/sqlite").stat().st_mode & 0o777 == 0o750


def test_the_image_has_a_health_check_a_volume_and_no_secret(images: Images) -> None:
    image = images.inspect()
    config = image["config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "metrics-service", "healthcheck"]
    assert config["User"] == f"{USER}:{USER}"
    assert set(config["Volumes"]) == {"/var/lib/sqlite"}
    assert set(config["ExposedPorts"]) == {"8890/tcp", "9465/tcp"}
    made = [each["created_by"] for each in image["history"]]
    assert any("COPY" in each for each in made)
    assert [each for each in [*config["Env"], *made] if SECRET.search(each)] == []


@pytest.mark.parametrize("line", ["ENV METRICS_ADMIN_KEY=x", "RUN TOKEN=abc pip install", "COPY mcp_metrics_abc"])
def test_a_secret_in_a_layer_would_be_found(line: str) -> None:
    assert SECRET.search(line)


def test_production_has_nothing_of_what_builds_it(container: Container) -> None:
    held = {path.name.lower() for path in (container.root / "opt/metrics-service/lib").glob("*/site-packages/*")}
    assert {"pipeline", "plugins", "uvicorn", "uvloop", "httptools"} <= held
    assert held & {"pip", "hatchling", "pytest", "mypy", "setuptools"} == set()
    for each in ("opt/build", "app", "wheels", "root/.cache", "var/lib/sqlite/metrics.db"):
        assert not (container.root / each).exists(), each


def test_development_runs_the_checkout_with_its_tools(container: Container) -> None:
    said = (container.root / "tried").read_text()
    assert "pytest 9" in said
    assert said.split()[-1] == str(USER)


def test_what_builds_the_wheel_is_what_is_tested() -> None:
    pinned = (
        set(re.findall(r"^\S+==\S+", (ROOT / f"requirements-{name}.lock").read_text(), re.MULTILINE))
        for name in ("build", "dev")
    )
    build, dev = pinned
    assert build <= dev
    assert any(each.startswith("hatchling==") for each in build)
