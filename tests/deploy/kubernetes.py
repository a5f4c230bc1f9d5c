"""What `kubectl kustomize` makes of k8s/, and our process as a pod of it would start it."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.leaks import keep_log, secret
from tests.programs import lacking, need
from tests.running import ADMIN_KEY, free_port, wait_until_healthy

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("production", "staging")
OLDEST = 21
"""Kubernetes 1.21 is the first whose kubectl knows components; the one of Debian 12 is 1.20."""
LINKS = {
    "METRICS_SERVICE_SERVICE_HOST": "10.96.0.7",
    "METRICS_SERVICE_SERVICE_PORT": "80",
    "METRICS_SERVICE_SERVICE_PORT_HTTP": "80",
    "METRICS_SERVICE_SERVICE_PORT_METRICS": "9465",
    "METRICS_SERVICE_PORT": "tcp://10.96.0.7:80",
    "METRICS_SERVICE_PORT_80_TCP": "tcp://10.96.0.7:80",
    "METRICS_SERVICE_PORT_80_TCP_PROTO": "tcp",
    "METRICS_SERVICE_PORT_80_TCP_PORT": "80",
    "METRICS_SERVICE_PORT_80_TCP_ADDR": "10.96.0.7",
    "METRICS_SERVICE_PORT_9465_TCP": "tcp://10.96.0.7:9465",
}
"""What Kubernetes puts into a pod for a service called `metrics-service`, unless links are off (kubelet, pkg/kubelet/envvars)."""


@functools.cache
def kubectl() -> str:
    """The program, if it is new enough."""
    program = need("kubectl", "kubernetes-client")
    told = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    minor = json.loads(told.stdout)["clientVersion"]["minor"]
    if int(minor.rstrip("+")) < OLDEST:
        lacking(f"kubectl is 1.{minor} (1.{OLDEST} or newer)")
    return program


@functools.cache
def rendered(folder: Path) -> str:
    """The manifests of a folder, rendered without any warning."""
    done = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def manifests(folder: Path) -> list[dict[str, Any]]:
    """The same as objects, which may be changed."""
    return list(yaml.safe_load_all(rendered(folder)))


def overlay(name: str) -> list[dict[str, Any]]:
    """Those of one of our overlays."""
    return manifests(K8S / "overlays" / name)


def one(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    """The only one of its kind, or of that name."""
    (found,) = (each for each in documents if each["kind"] == kind and name in (None, each["metadata"]["name"]))
    return found


def claim_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The claim of the service's data."""
    return one(documents, "PersistentVolumeClaim", "metrics-storage")


def pod_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification of the pod."""
    spec: dict[str, Any] = one(documents, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def backup_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification of the pod that makes backups."""
    spec: dict[str, Any] = one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def container_of(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Its only container."""
    (container,) = pod_of(documents)["containers"]
    found: dict[str, Any] = container
    return found


def variables(documents: list[dict[str, Any]]) -> dict[str, str]:
    """The environment that the manifests give to the container: what is written there itself wins."""
    container, config = container_of(documents), one(documents, "ConfigMap")
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    return {**config["data"], **{each["name"]: each["value"] for each in container["env"]}}


def mounted(documents: list[dict[str, Any]]) -> dict[str, str]:
    """Where each volume of the pod is mounted."""
    return {each["name"]: each["mountPath"] for each in container_of(documents)["volumeMounts"]}


def placed(environ: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """The environment, with folders of ours in the place of those of the container."""
    paths = re.compile("|".join(f"^{re.escape(path)}(?=/|$)" for path in here))
    return {name: paths.sub(lambda found: here[found[0]], value) for name, value in environ.items()}


@dataclass
class Pod:
    """How the container of the manifests is started, with folders below `folder` for its volumes and free ports for its own."""

    folder: Path
    environ: dict[str, str]
    base: str
    command: list[str]

    @property
    def database(self) -> Path:
        """On its volume."""
        return Path(self.environ["SQLITE_DB_PATH"])


def pod(documents: list[dict[str, Any]], folder: Path, added: Mapping[str, str] | None = None) -> Pod:
    """Make its volumes; `added` are variables of Kubernetes' own, over which those of the manifests win."""
    here = {path: str(folder / name) for name, path in mounted(documents).items()}
    for path in here.values():
        Path(path).mkdir(exist_ok=True)
    key = Path(here["/etc/metrics-service/keys"]) / "admin-key"
    key.unlink(missing_ok=True)
    key.touch(0o440)
    key.write_text(secret(ADMIN_KEY))
    environ = placed(dict(added or {}) | variables(documents), here)
    database = "staging_metrics.db" if environ["METRICS_CONFIG"] == "staging" else "metrics.db"
    environ["SQLITE_DB_PATH"] = f"{here['/var/lib/sqlite']}/{database}"  # the default, below our folder
    port = free_port()
    environ |= {"METRICS_SERVICE_PORT": str(port), "OTEL_PROMETHEUS_PORT": str(free_port())}
    environ |= {"PATH": os.environ["PATH"], "TMPDIR": here["/tmp"]}  # noqa: S108
    container = container_of(documents)
    assert "command" not in container
    assert "args" not in container
    command = [str(Path(sys.executable).parent / "metrics-service"), "run"]  # the image's
    return Pod(folder, environ, f"http://127.0.0.1:{port}", command)


@contextmanager
def started(pod: Pod) -> Iterator[subprocess.Popen[bytes]]:
    """The process, healthy; killed at the end, if it is still there."""
    log = pod.folder / "service.log"
    with log.open("ab") as written:
        start = written.tell()
        running = subprocess.Popen(pod.command, env=pod.environ, stderr=written, cwd=pod.folder / "data")
    try:
        wait_until_healthy(pod.base, running, log)
        yield running
    finally:
        running.kill()
        running.wait()
        keep_log(log, start)


def ended(running: subprocess.Popen[bytes], seconds: float) -> int:
    """The exit code after the SIGTERM that the kubelet sends, within the grace period."""
    running.send_signal(signal.SIGTERM)
    return running.wait(timeout=seconds)
