"""k8s/ renders, is valid by the schemas of Kubernetes, and holds no secret."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.kubernetes import K8S, OVERLAYS, manifests, one, overlay, rendered

pytestmark = pytest.mark.deploy

NAMES = pytest.mark.parametrize("name", OVERLAYS)
VERSIONS = ("1.27", "1.37")
KINDS = {
    *("Namespace", "ConfigMap", "PersistentVolumeClaim", "StatefulSet", "Service", "Ingress"),
    *("NetworkPolicy", "PodDisruptionBudget", "CronJob"),
}


def invalid(document: dict[str, Any], version: str) -> bool:
    """Whether Kubernetes of that version would refuse it, unknown fields too."""
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError:
        return True
    return False


@NAMES
@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(name: str, version: str) -> None:
    documents = overlay(name)
    assert {each["kind"] for each in documents} == KINDS
    assert [each["kind"] for each in documents if invalid(each, version)] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_field_that_there_is_not_and_a_wrong_type_are_found(version: str) -> None:
    stateful_set = one(overlay("production"), "StatefulSet")
    stateful_set["spec"]["template"]["spec"]["enableServiceLink"] = False
    assert invalid(stateful_set, version)
    config = one(overlay("production"), "ConfigMap")
    config["data"]["METRICS_SERVICE_PORT"] = 8890
    assert invalid(config, version)


def test_the_folder_itself_is_production_and_its_namespace_comes_first() -> None:
    assert rendered(K8S) == rendered(K8S / "overlays" / "production")
    for name in OVERLAYS:
        documents = overlay(name)
        assert documents[0]["kind"] == "Namespace"
        assert {each["metadata"]["namespace"] for each in documents[1:]} == {documents[0]["metadata"]["name"]}


def test_the_overlays_can_be_in_one_cluster() -> None:
    production, staging = (overlay(name) for name in OVERLAYS)
    assert production[0]["metadata"]["name"] != staging[0]["metadata"]["name"]
    hosts = [one(each, "Ingress")["spec"]["rules"][0]["host"] for each in (production, staging)]
    assert len(set(hosts)) == 2
    for documents, host in zip((production, staging), hosts, strict=True):
        assert one(documents, "Ingress")["spec"]["tls"][0]["hosts"] == [host]


@NAMES
def test_the_monitor_is_added_by_one_line(name: str, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", K8S, tmp_path], check=True)
    file = tmp_path / "k8s" / "overlays" / name / "kustomization.yaml"
    file.write_text(file.read_text().replace("# - ../../components", "- ../../components"))
    documents = manifests(file.parent)
    monitor, service = one(documents, "ServiceMonitor"), one(documents, "Service")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"]
    assert ("jobLabel" in monitor["spec"], service["metadata"]["name"]) == (False, "metrics-service")


def test_no_manifest_holds_a_secret() -> None:
    for path in K8S.rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            assert document["kind"] != "Secret"
            assert "secretGenerator" not in document
