"""What the manifests of k8s/ must say beyond being valid: rules, each with a change that breaks it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.load import load_configuration
from pipeline.hard_exit import MARGIN
from pipeline.registry import load_registry
from tests.deploy.kubernetes import OVERLAYS, ROOT, backup_of, claim_of, container_of, one, overlay, pod_of, variables

pytestmark = pytest.mark.deploy

Documents = list[dict[str, Any]]
ANNOTATIONS = {
    "cert-manager.io/cluster-issuer",
    *(f"nginx.ingress.kubernetes.io/{name}" for name in ("proxy-body-size", "limit-rps", "force-ssl-redirect")),
}
"""Those of ours that the documentation of cert-manager and of ingress-nginx ("Annotations") has."""


def grace_period(documents: Documents) -> bool:
    """Whether a stop has the time that docs/operating.md says it may need."""
    environ = variables(documents)
    config = load_configuration([environ["METRICS_CONFIG"]], [], environ, load_registry(installed=False))
    needed = config.settings.drain_delay + 2 * config.settings.stop_timeout
    return bool(config.settings.drain_delay) and pod_of(documents)["terminationGracePeriodSeconds"] > needed + MARGIN


def is_restricted(pod: dict[str, Any]) -> bool:
    """Whether a pod keeps to the standard `restricted` (Pod Security Standards), with a root that is read-only and no token."""
    of_pod, (container,) = pod["securityContext"], pod["containers"]
    nothing = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return (
        of_pod["runAsNonRoot"] is True
        and (of_pod["runAsUser"], of_pod["runAsGroup"], of_pod["fsGroup"]) == (1001, 1001, 1001)
        and of_pod["fsGroupChangePolicy"] == "OnRootMismatch"
        and of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
        and container["securityContext"] == nothing
        and not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
        and all(each.keys() & {"persistentVolumeClaim", "secret", "emptyDir"} for each in pod["volumes"])
        and pod["automountServiceAccountToken"] is False
    )


def restricted(documents: Documents) -> bool:
    """Whether all pods are, and the namespace insists on it."""
    enforced = one(documents, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    return enforced == "restricted" and is_restricted(pod_of(documents)) and is_restricted(backup_of(documents))


def probes(documents: Documents) -> bool:
    """Whether each asks what it is for, at a port that the container has."""
    container = container_of(documents)
    paths = {"startup": "/health/live", "liveness": "/health/live", "readiness": "/health/ready"}
    found = {name: container[f"{name}Probe"]["httpGet"] for name in paths}
    return found == {name: {"path": path, "port": "http"} for name, path in paths.items()}


def ports(documents: Documents) -> bool:
    """Whether the container has those of the config map, the service both, and the policy no others."""
    environ, service = variables(documents), one(documents, "Service")
    named = {each["name"]: each["containerPort"] for each in container_of(documents)["ports"]}
    policy = one(documents, "NetworkPolicy")["spec"]["ingress"]
    return (
        named == {"http": int(environ["METRICS_SERVICE_PORT"]), "metrics": int(environ["OTEL_PROMETHEUS_PORT"])}
        and [(each["name"], each["port"], each["targetPort"]) for each in service["spec"]["ports"]]
        == [("http", 80, "http"), ("metrics", 9465, "metrics")]
        and [each["ports"] for each in policy] == [[{"port": name, "protocol": "TCP"}] for name in ("http", "metrics")]
        and all(each["from"] for each in policy)
    )


def labels(documents: Documents) -> bool:
    """Whether all select the pod."""
    stateful_set = one(documents, "StatefulSet")["spec"]
    own = stateful_set["template"]["metadata"]["labels"]
    selectors = [
        stateful_set["selector"]["matchLabels"],
        one(documents, "Service")["spec"]["selector"],
        one(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ]
    return all(selector and selector.items() <= own.items() for selector in selectors)


def routes(documents: Documents) -> bool:
    """Whether the ingress hands on what clients call, by annotations that there are, and nothing of administrators."""
    ingress = one(documents, "Ingress")
    paths = [(path["path"], path["pathType"]) for path in ingress["spec"]["rules"][0]["http"]["paths"]]
    return (
        paths == [(path, "Exact") for path in ("/metrics", "/flush", "/rate-limit", "/health")]
        and ingress["metadata"]["annotations"].keys() == ANNOTATIONS
        and ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-body-size"] == "10m"
        and ingress["spec"]["ingressClassName"] == "nginx"
    )


def image(documents: Documents) -> bool:
    """Whether it is this version's, and the same for backups."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    used = {each["containers"][0]["image"] for each in (pod_of(documents), backup_of(documents))}
    return len(used) == 1 and re.fullmatch(rf"[\w./-]+:{re.escape(version)}", used.pop()) is not None


def backup(documents: Documents) -> bool:
    """Whether it reads the service's volume under the service's configuration, on its node, and writes to another."""
    spec, own = backup_of(documents), one(documents, "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    (near,) = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (container,) = spec["containers"]
    claims = {each["name"]: each.get("persistentVolumeClaim", {}).get("claimName") for each in spec["volumes"]}
    (target,) = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == container["args"][-1]]
    return (
        near == {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": own}}
        and claims["data"] == claim_of(documents)["metadata"]["name"] != claims[target]
        and container["envFrom"] == container_of(documents)["envFrom"]
        and one(documents, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"] != own
        and spec["enableServiceLinks"] is False
    )


def one_owner(documents: Documents) -> bool:
    """Whether there is one pod, and it has the claim, and a node may be drained all the same."""
    volumes = [
        each["persistentVolumeClaim"] for each in pod_of(documents)["volumes"] if "persistentVolumeClaim" in each
    ]
    return (
        one(documents, "StatefulSet")["spec"]["replicas"] == 1
        and volumes == [{"claimName": claim_of(documents)["metadata"]["name"]}]
        and one(documents, "PodDisruptionBudget")["spec"].get("maxUnavailable") == 1
        and claim_of(documents)["spec"]["accessModes"] == ["ReadWriteOnce"]
    )


def no_links(documents: Documents) -> bool:
    """Whether Kubernetes adds no variables of its own."""
    return pod_of(documents)["enableServiceLinks"] is False


def resources(documents: Documents) -> bool:
    """Whether they are the deployment guide's."""
    guide = {"requests": {"memory": "256Mi", "cpu": "250m"}, "limits": {"memory": "512Mi", "cpu": "500m"}}
    return bool(container_of(documents)["resources"] == guide)


RULES = (grace_period, restricted, probes, ports, labels, routes, image, one_owner, no_links, resources, backup)


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_holds(name: str, rule: Callable[[Documents], bool]) -> None:
    assert rule(overlay(name))


BREAKS: list[tuple[Callable[[Documents], bool], Callable[[Documents], object]]] = [
    (grace_period, lambda docs: pod_of(docs).update(terminationGracePeriodSeconds=27)),
    (grace_period, lambda docs: one(docs, "ConfigMap")["data"].update(METRICS_DRAIN_DELAY_SECONDS="")),
    (restricted, lambda docs: pod_of(docs)["securityContext"].update(runAsUser=0)),
    (
        restricted,
        lambda docs: container_of(docs)["securityContext"].update(capabilities={"drop": ["ALL"], "add": ["X"]}),
    ),
    (restricted, lambda docs: pod_of(docs)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    (restricted, lambda docs: pod_of(docs).update(hostNetwork=True)),
    (restricted, lambda docs: backup_of(docs)["securityContext"].update(runAsNonRoot=False)),
    (probes, lambda docs: container_of(docs)["livenessProbe"]["httpGet"].update(path="/health")),
    (ports, lambda docs: one(docs, "ConfigMap")["data"].update(METRICS_SERVICE_PORT="8000")),
    (ports, lambda docs: one(docs, "NetworkPolicy")["spec"]["ingress"].append({"from": [], "ports": []})),
    (labels, lambda docs: one(docs, "Service")["spec"].update(selector={"app": "metrics"})),
    (routes, lambda docs: one(docs, "Ingress")["spec"]["rules"][0]["http"]["paths"][0].update(path="/")),
    (
        routes,
        lambda docs: one(docs, "Ingress")["metadata"]["annotations"].update(
            {"nginx.ingress.kubernetes.io/rate-limit": "100"}
        ),
    ),
    (image, lambda docs: container_of(docs).update(image="metrics-service:latest")),
    (image, lambda docs: backup_of(docs)["containers"][0].update(image="metrics-service:0.0.9")),
    (
        backup,
        lambda docs: backup_of(docs)["affinity"]["podAffinity"].update(
            requiredDuringSchedulingIgnoredDuringExecution=[{"topologyKey": "zone"}]
        ),
    ),
    (backup, lambda docs: backup_of(docs)["containers"][0].update(args=["/var/lib/sqlite"])),
    (one_owner, lambda docs: one(docs, "StatefulSet")["spec"].update(replicas=2)),
    (no_links, lambda docs: pod_of(docs).update(enableServiceLinks=True)),
    (resources, lambda docs: container_of(docs)["resources"]["limits"].update(memory="128Mi")),
]


@pytest.mark.parametrize(("rule", "change"), BREAKS)
def test_a_change_that_breaks_a_rule_is_found(
    rule: Callable[[Documents], bool], change: Callable[[Documents], object]
) -> None:
    documents = overlay("production")
    change(documents)
    assert not rule(documents)


def test_every_rule_has_a_change_that_breaks_it() -> None:
    assert {rule for rule, _ in BREAKS} == set(RULES)
