"""The compose files: by the specification's schema, by the rules of this project, and their nginx with the real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pipeline.config.env_file import read_env_file
from tests.deploy.behind import BehindAProxy, ciphers_that_there_are
from tests.deploy.proxies import INSIDE, ROOT, Ports, Site, certificate, free_ports, replaced, service, serving
from tests.programs import need
from tests.running import process
from tests.test_docs import DOCS, table

pytestmark = pytest.mark.deploy

PRODUCTION, DEVELOPMENT = "docker-compose.prod.yml", "compose.yaml"
CONF = "deploy/compose/nginx.conf"
NGINX_USER = 101


def document(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def valid(file: Path) -> bool:
    """Whether the schema of the Compose specification allows it."""
    words = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run([sys.executable, *words], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", [PRODUCTION, DEVELOPMENT])
def test_the_specification_allows_it(name: str, tmp_path: Path) -> None:
    assert valid(ROOT / name)
    wrong = document(name)
    wrong["services"]["metrics-service"]["readonly"] = True
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    assert not valid(tmp_path / "wrong.yaml")


CONTAINERS = [
    (name, service, options)
    for name in (PRODUCTION, DEVELOPMENT)
    for service, options in document(name)["services"].items()
]


@pytest.mark.parametrize(
    ("name", "service", "options"), CONTAINERS, ids=[f"{name}-{each}" for name, each, _ in CONTAINERS]
)
def test_no_container_may_do_more_than_it_needs(name: str, service: str, options: Mapping[str, Any]) -> None:
    assert options["cap_drop"] == ["ALL"]
    assert options["security_opt"] == ["no-new-privileges:true"]
    assert options["read_only"] is True
    assert [each.partition(":")[0] for each in options["tmpfs"]] == ["/tmp"]  # noqa: S108
    assert "privileged" not in options
    assert "cap_add" not in options


def test_nginx_alone_is_published_and_there_is_no_database_container() -> None:
    services = document(PRODUCTION)["services"]
    assert set(services) == {"metrics-service", "nginx"}
    assert {name for name, options in services.items() if "ports" in options} == {"nginx"}
    published = document(DEVELOPMENT)["services"]["metrics-service"]["ports"]
    assert all(each.startswith("127.0.0.1:") for each in published)


def test_the_volume_and_the_health_check_are_those_of_the_image() -> None:
    options = document(PRODUCTION)["services"]["metrics-service"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (volume,) = set(re.findall(r"^VOLUME (\S+)$", dockerfile, re.MULTILINE))
    assert options["volumes"] == [f"metrics-data:{volume}"]
    assert '", "'.join(options["healthcheck"]["test"][1:]) in dockerfile
    for name in (PRODUCTION, DEVELOPMENT):
        target = document(name)["services"]["metrics-service"]["build"]["target"]
        assert re.search(rf"^FROM \S+ AS {target}$", dockerfile, re.MULTILINE)


def given() -> dict[str, str]:
    """The variables of production's service."""
    options = document(PRODUCTION)["services"]["metrics-service"]
    return {**read_env_file(ROOT / options["env_file"]), **options["environment"]}


def test_every_variable_that_is_set_is_one_and_none_holds_a_secret() -> None:
    known = table(DOCS / "environment.md", "variable")
    assert {name for name in given() if name not in known} == set()
    assert not [name for name in given() if "KEY" in name and not name.endswith("_FILE")]
    mounted = document(PRODUCTION)["secrets"]
    assert {Path(each["file"]).parent for each in mounted.values()} == {Path("deploy/compose/secrets")}
    ignored = ["git", "check-ignore", "--quiet", "deploy/compose/secrets/metrics_admin_key"]
    assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0


def test_the_service_runs_with_what_it_is_given(tmp_path: Path) -> None:
    key = tmp_path / "metrics_admin_key"
    key.write_text("an-admin-key-of-this-test-long-enough\n")
    key.chmod(0o400)
    environ = given() | {
        "METRICS_ADMIN_KEY": "",
        "METRICS_ADMIN_KEY_FILE": str(key),
        "METRICS_SERVICE_HOST": "127.0.0.1",
    }
    environ["SQLITE_DB_PATH"] = str(tmp_path / "metrics.db")
    with process(tmp_path, **environ) as (_, base):
        headers = {"X-API-Key": key.read_text().strip()}
        pushed = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        assert httpx.post(f"{base}/metrics", headers=headers, json=pushed).json()["accepted"] == 1
        assert httpx.get(f"{base}/admin/database/size", headers=headers).status_code == 200


def test_development_runs_with_its_command(tmp_path: Path) -> None:
    program, verb, *options = document(DEVELOPMENT)["services"]["metrics-service"]["command"]
    assert (program, verb, options) == ("metrics-service", "run", ["--reload"])
    with process(tmp_path, *options, config="development") as (_, base):
        assert httpx.get(f"{base}/health").status_code == 200


def test_the_proxy_is_believed_and_nginx_asks_where_the_service_is() -> None:
    (network,) = document(PRODUCTION)["networks"]["default"]["ipam"]["config"]
    assert given()["METRICS_TRUSTED_PROXIES"] == network["subnet"]
    ports = {each.rpartition(":")[2] for each in document(PRODUCTION)["services"]["nginx"]["ports"]}
    text = (ROOT / CONF).read_text(encoding="utf-8")
    assert set(re.findall(r"listen (\d+)", text)) == ports
    assert set(re.findall(r"metrics-service:(\d+)", text)) == set(
        document(PRODUCTION)["services"]["metrics-service"]["expose"]
    )
    assert set(re.findall(r"/run/secrets/([\w.]+);", text)) == set(document(PRODUCTION)["services"]["nginx"]["secrets"])


@contextmanager
def nginx(log: Path, ports: Ports) -> Iterator[Path]:
    """nginx with the configuration of its container, as the user of that and without capabilities; yields its authority's certificate."""
    with (
        tempfile.TemporaryDirectory() as made
    ):  # in a folder of pytest's, which is closed to that user, it could not read
        folder = Path(made)
        ca, paths = certificate(folder)
        text = replaced(
            (ROOT / CONF).read_text(encoding="utf-8"),
            {
                " /tmp/": f" {folder}/",
                "/run/secrets/metrics.crt": paths["/etc/ssl/certs/metrics.crt"],
                "/run/secrets/metrics.key": paths["/etc/ssl/private/metrics.key"],
                "listen 8080;": f"listen 127.0.0.1:{ports.plain};",
                "listen 8443 ssl;": f"listen 127.0.0.1:{ports.secure} ssl;",
                "metrics-service:8890": f"127.0.0.1:{ports.service}",
                "metrics-service:9465": f"127.0.0.1:{ports.series}",
                "127.0.0.0/8 ": f"{INSIDE} ",
            },
        )
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        for each in (folder, *folder.rglob("*")):
            os.chown(each, NGINX_USER, NGINX_USER)
        log.touch()
        log.chmod(0o666)  # what Docker gives as standard output can be opened by any user
        user = [
            f"--reuid={NGINX_USER}",
            f"--regid={NGINX_USER}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
        command = [need("nginx"), "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        words = [need("setpriv", "util-linux"), *user, *command]
        with serving(["sh", "-c", f'exec "$@" >>{log}', "sh", *words], ports.secure, log, {}):
            yield ca


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """nginx in front of a service."""
    folder, ports = tmp_path_factory.mktemp("compose"), free_ports()
    with service(folder, ports), nginx(folder / "access.log", ports) as ca:
        yield Site(folder, ports, ca)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
class TestNginxOfCompose(BehindAProxy):
    """What holds behind every proxy."""


def test_every_cipher_is_one() -> None:
    assert ciphers_that_there_are(CONF, "ssl_ciphers")


def test_its_limits_are_those_of_the_site_without_containers() -> None:
    limits = re.compile(
        r"^\s*((?:client_|limit_|large_|ssl_ciphers|ssl_protocols|add_header|proxy_\w*timeout|keepalive)[^#\n]*;)",
        re.MULTILINE,
    )
    ours, other = (
        [each for each in limits.findall((ROOT / name).read_text(encoding="utf-8")) if "_temp_path" not in each]
        for name in (CONF, "deploy/nginx/metrics-service.conf")
    )
    assert len(ours) > 20
    assert ours == other
