"""docs/deploy/kubernetes.md: what needs no cluster is done, what the pod is asked is asked of our process, the rest names what there is."""

from __future__ import annotations

import base64
import re
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.kubernetes import K8S, Pod, claim_of, kubectl, manifests, one, overlay, pod, started
from tests.leaks import secret
from tests.programs import need
from tests.test_docs import DOCS, blocks, table

pytestmark = pytest.mark.deploy

PAGE = DOCS / "deploy" / "kubernetes.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [line for text in blocks(PAGE, "bash") for line in text.splitlines()]
NEEDS_A_CLUSTER = re.compile(
    r"kubectl (apply|get|label|taint|-n metrics-system (rollout|describe|logs|wait|create job)) "
)
IN_THE_POD = "kubectl -n metrics-system exec metrics-service-0 -- "
SECRET = "kubectl -n metrics-system create secret generic "
RETENTION = 90 * 86_400


def shell(line: str, folder: Path, **environ: str) -> str:
    """What it prints, done in that folder."""
    done = subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False, env=environ or None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def secret_of(line: str, folder: Path) -> dict[str, bytes]:
    """The files of the secret that this command would make; the key is made by the page's own command."""
    need("openssl")
    (make, *_) = [each for each in COMMANDS if "openssl" in each]
    shell(make, folder)
    assert (folder / "admin-key").stat().st_mode & 0o077 == 0
    alone = line.partition(" --dry-run")[0].replace("kubectl", kubectl())
    made = yaml.safe_load(shell(f"{alone} --dry-run=client -o yaml", folder))
    assert (made["metadata"]["name"], made["metadata"]["namespace"]) == ("metrics-secrets", "metrics-system")
    return {name: base64.b64decode(text) for name, text in made["data"].items()}


def test_every_command_is_done_here_or_needs_a_cluster() -> None:
    done = ("sed ", "kubectl kustomize ", "(umask", "rm admin-key", ".venv/bin/pytest ", IN_THE_POD, SECRET)
    assert [line for line in COMMANDS if not line.startswith(done) and not NEEDS_A_CLUSTER.match(line)] == []


def test_ones_own_names_are_in_all_that_is_rendered(tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", K8S, tmp_path], check=True)
    change, show = (line for line in COMMANDS if line.startswith(("sed ", "kubectl kustomize")))
    shell(change, tmp_path)
    shown = shell(show.replace("kubectl", kubectl()), tmp_path)
    for text in (shown, yaml.safe_dump_all(manifests(tmp_path / "k8s" / "overlays" / "staging"))):
        assert "yourdomain" not in text
        assert text.count("example.org") == 4  # the image of two pods, the host, the host of the certificate


def test_what_is_applied_and_asked_about_is_there() -> None:
    documents = overlay("production")
    for line in COMMANDS:
        for path in re.findall(r"-[fk] (k8s\S*)", line):
            assert (K8S.parent / path).exists()
        for namespace in re.findall(r"-n (\S+)", line):
            assert namespace == documents[0]["metadata"]["name"]
    name = one(documents, "StatefulSet")["metadata"]["name"]
    assert f"statefulset/{name}" in TEXT
    assert re.findall(r"exec (\S+) --", TEXT) == [f"{name}-0"] * 3
    assert one(overlay("staging"), "Namespace")["metadata"]["name"] in TEXT
    assert f"--from=cronjob/{one(documents, 'CronJob')['metadata']['name']} " in TEXT
    service = one(documents, "Service")["metadata"]
    assert f"http://{service['name']}.{service['namespace']}/metrics" in TEXT
    (allowed, _) = one(documents, "NetworkPolicy")["spec"]["ingress"]
    (label,) = re.findall(r"kubectl label namespace \S+ (\S+)=true", TEXT)
    assert {"namespaceSelector": {"matchLabels": {label: "true"}}} in allowed["from"]


def test_the_secret_has_what_the_pod_reads(tmp_path: Path) -> None:
    lines = [line for line in COMMANDS if line.startswith(SECRET)]
    assert len(lines) == 2
    for line in lines:
        ours = pod(overlay("production"), tmp_path)
        assert secret_of(line, tmp_path).keys() == {Path(ours.environ["METRICS_ADMIN_KEY_FILE"]).name}


def asked(ours: Pod, path: str, key: str) -> int:
    """The status of a call."""
    return httpx.get(f"{ours.base}{path}", headers={"X-API-Key": key}).status_code


def test_what_is_asked_of_the_pod_does_what_the_page_says(tmp_path: Path) -> None:
    ours = pod(overlay("production"), tmp_path)
    keys = Path(ours.environ["METRICS_ADMIN_KEY_FILE"]).parent
    (variable,) = re.findall(r"`(METRICS_API_KEY_\w+=\S+)`", TEXT)
    name, _, path = variable.partition("=")
    gateway = secret("gateway-key-that-is-long-enough-for-no-warning")
    (keys / Path(path).name).write_text(gateway)
    ours.environ[name] = str(keys / Path(path).name)
    health, create, hangup = (line.removeprefix(IN_THE_POD) for line in COMMANDS if line.startswith(IN_THE_POD))
    environ = {**ours.environ, "PATH": f"{Path(ours.command[0]).parent}:{ours.environ['PATH']}"}
    with started(ours) as running:
        shell(health, tmp_path, **environ)
        made = shell(create, tmp_path, **environ)
        key = secret(next(word for word in made.split() if word.startswith("mcp_metrics_")))
        assert [asked(ours, "/rate-limit", each) for each in (key, gateway)] == [200, 200]
        (line, _) = (line for line in COMMANDS if line.startswith(SECRET))
        new = secret_of(line, tmp_path)["admin-key"]
        fresh = secret(new.decode().strip())
        assert asked(ours, "/admin/database/size", fresh) == 401
        (keys / "admin-key").chmod(0o640)
        (keys / "admin-key").write_bytes(new)
        assert hangup.endswith(" 1'")
        shell(hangup.replace(" 1'", f" {running.pid}'"), tmp_path)
        deadline = time.monotonic() + 20
        while asked(ours, "/admin/database/size", fresh) != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_sizes_are_those_of_the_claims_and_add_up() -> None:
    (bytes_a_row,) = re.findall(r"takes (\d+) bytes", TEXT)
    assert f"{RETENTION:,}" in TEXT
    rows = table(PAGE, "load, day and night")
    for load, text in rows.items():
        if found := re.match(r"(\d+) GB", text):
            rate = float(load.split()[0]) if "a second" in load else 5000 / 60
            assert round(rate * int(bytes_a_row) * RETENTION / 1e9) == int(found[1]), load
    for name, rate in (("production", 30), ("staging", 6)):
        size = claim_of(overlay(name))["spec"]["resources"]["requests"]["storage"]
        assert f"{size.removesuffix('Gi')} GiB" in rows[f"{rate} metrics a second"]
        needed = rate * int(bytes_a_row) * RETENTION
        assert needed < 0.9 * int(size.removesuffix("Gi")) * 2**30
