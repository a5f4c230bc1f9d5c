"""Our process with the environment and the command of the rendered pod: it runs, an update of it loses nothing, there is no second."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.books import assert_balanced
from tests.deploy.kubernetes import LINKS, Pod, backup_of, ended, one, overlay, pod, pod_of, started
from tests.running import ADMIN_KEY, free_port, rows

pytestmark = pytest.mark.deploy

CLIENTS = 4
HEADERS = {"X-API-Key": ADMIN_KEY}


def push(client: httpx.Client, id: str) -> httpx.Response:
    """Push one metric that can be found again."""
    document = {"service": "test", "metrics": [{"type": "custom", "value": 1, "metadata": {"id": id}}]}
    return client.post("/metrics", json=document, headers={"Idempotency-Key": id})


def stored(pod: Pod) -> Counter[str]:
    """How often each of those is in the database."""
    found = rows(pod.database, "SELECT json_extract(metadata, '$.id') FROM metrics")
    return Counter(id for (id,) in found)


@pytest.mark.parametrize(("name", "links"), [("production", LINKS), ("staging", {})])
def test_the_pod_starts_takes_a_push_and_stops(name: str, links: dict[str, str], tmp_path: Path) -> None:
    documents = overlay(name)
    ours = pod(documents, tmp_path, links)
    with started(ours) as running, httpx.Client(base_url=ours.base, headers=HEADERS) as client:
        for kind in ("startup", "liveness", "readiness"):
            path = pod_of(documents)["containers"][0][f"{kind}Probe"]["httpGet"]["path"]
            assert client.get(path).status_code == 200
        answer = push(client, "one")
        assert answer.json()["accepted"] == 1, answer.text
        assert answer.headers["x-ratelimit-limit"] == ours.environ["METRICS_RATE_LIMIT"]
        assert client.post("/flush").json()["status"] == "success"
        scraped = httpx.get(f"http://127.0.0.1:{ours.environ['OTEL_PROMETHEUS_PORT']}/metrics").text
        assert "mcp_custom_events_total" in scraped
        assert client.get("/docs").status_code == (404 if name == "production" else 200)
        assert ended(running, pod_of(documents)["terminationGracePeriodSeconds"]) == 0
    assert stored(ours) == {"one": 1}
    said = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert {line["level"] for line in said} <= {"INFO", "WARNING"}
    assert [line for line in said if line["level"] == "WARNING" and "admin-key" in line["message"]] == []


def test_a_link_in_the_place_of_the_port_is_refused(tmp_path: Path) -> None:
    """Why links are off: a pod whose config map does not set the port would be told this."""
    ours = pod(overlay("production"), tmp_path)
    done = subprocess.run(ours.command, env={**ours.environ, **LINKS}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tcp://10.96.0.7:80" in done.stderr


class Client(threading.Thread):
    """Pushes one metric after the other, and each until it is answered 200, as clients should."""

    def __init__(self, base: str, number: int, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, float] = {}
        self.retries = 0
        self.fault: BaseException | None = None
        self._base, self._number, self._enough = base, number, enough

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self._base, headers=HEADERS, timeout=20) as client:
                for count in itertools.count():
                    if self._enough.is_set() or not self._until_taken(client, f"{self._number}-{count}"):
                        return
        except BaseException as error:
            self.fault = error

    def _until_taken(self, client: httpx.Client, id: str) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                answer = push(client, id)
            except httpx.TransportError:
                pass
            else:
                if answer.status_code == 200:
                    self.acknowledged[id] = time.monotonic()
                    return True
                assert answer.status_code in (429, 503), answer.text
            self.retries += 1
            time.sleep(0.02)  # a client's pause
        raise TimeoutError(id)


def wait_for_more(clients: list[Client]) -> None:
    """Until each client has been answered ten times from now on."""
    before = [len(each.acknowledged) for each in clients]
    deadline = time.monotonic() + 20
    while any(len(each.acknowledged) < count + 10 for each, count in zip(clients, before, strict=True)):
        assert time.monotonic() < deadline, [each.fault for each in clients]
        time.sleep(0.01)


def update(old: Pod, new: Pod, grace: float) -> tuple[list[Client], dict[str, float]]:
    """What a stateful set does: SIGTERM, wait for the end, start the new one, with clients that push all the while. Gives them, and
    how long what took."""
    enough = threading.Event()
    clients = [Client(old.base, number, enough) for number in range(CLIENTS)]
    with started(old) as running:
        for each in clients:
            each.start()
        wait_for_more(clients)
        told = time.monotonic()
        assert ended(running, grace) == 0
    with started(new) as running:
        ready = time.monotonic()
        wait_for_more(clients)
        enough.set()
        for each in clients:
            each.join(30)
        httpx.post(f"{new.base}/flush", headers=HEADERS, timeout=30).raise_for_status()
        running.terminate()
        assert running.wait(grace) == 0
    answers = sorted(at for each in clients for at in each.acknowledged.values())
    gap = max(after - before for before, after in itertools.pairwise(answers))
    return clients, {"from SIGTERM to ready": ready - told, "without an answer": gap}


def wrong(clients: list[Client], pod: Pod) -> dict[str, Any]:
    """What is not as it should be: nothing, if all is well."""
    found = stored(pod)
    acknowledged = {id for each in clients for id in each.acknowledged}
    all_of_it = {
        "clients": [repr(each.fault) for each in clients if each.fault],
        "lost": sorted(acknowledged - found.keys()),
        "twice": sorted(id for id, count in found.items() if count > 1),
        "stored without an answer": sorted(found.keys() - acknowledged),
    }
    return {what: which for what, which in all_of_it.items() if which}


def test_an_update_loses_nothing(tmp_path: Path) -> None:
    documents = overlay("production")
    # One key for all clients here: more than production's limit, of which 429 would hide the gap.
    ours = pod(documents, tmp_path)
    ours.environ["METRICS_RATE_LIMIT"] = "1000000"
    clients, took = update(ours, ours, pod_of(documents)["terminationGracePeriodSeconds"])
    assert wrong(clients, ours) == {}
    assert_balanced((tmp_path / "data" / "metrics-journal").glob("*.db"))
    retries = sum(each.retries for each in clients)
    assert retries > 0, "there was an update"
    print({name: f"{seconds:.1f} s" for name, seconds in took.items()}, f"{retries} retries")  # noqa: T201


def test_a_pod_that_starts_without_the_volume_of_the_one_before_has_lost(tmp_path: Path) -> None:
    """The control of the test above."""
    documents = overlay("production")
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old = pod(documents, tmp_path / "old")
    old.environ |= {"METRICS_RATE_LIMIT": "1000000", "METRICS_DRAIN_DELAY_SECONDS": "0"}
    elsewhere = {"SQLITE_DB_PATH": str(tmp_path / "new" / "data" / "metrics.db")}
    new = replace(pod(documents, tmp_path / "new"), environ=old.environ | elsewhere, base=old.base)
    clients, _ = update(old, new, pod_of(documents)["terminationGracePeriodSeconds"])
    assert wrong(clients, new).keys() == {"lost"}


def test_a_second_pod_on_the_volume_is_turned_away_and_the_first_goes_on(tmp_path: Path) -> None:
    first = pod(overlay("production"), tmp_path)
    own = {"METRICS_SERVICE_PORT": str(free_port()), "OTEL_PROMETHEUS_PORT": str(free_port())}
    with started(first) as running, httpx.Client(base_url=first.base, headers=HEADERS) as client:
        assert push(client, "before").status_code == 200
        second = subprocess.run(
            first.command, env=first.environ | own, capture_output=True, text=True, check=False, timeout=30
        )
        assert second.returncode == 73
        assert str(running.pid) in second.stderr
        assert push(client, "after").status_code == 200
        assert client.post("/flush").json()["status"] == "success"
        assert running.poll() is None
    assert stored(first) == {"before": 1, "after": 1}


def test_the_backup_of_the_cron_job_holds_what_is_stored_while_the_pod_runs(tmp_path: Path) -> None:
    documents = overlay("production")
    ours, backups = pod(documents, tmp_path), tmp_path / "backups"
    (container,) = backup_of(documents)["containers"]
    environ = {"PATH": ours.environ["PATH"], **one(documents, "ConfigMap")["data"]}
    environ["SQLITE_DB_PATH"] = ours.environ["SQLITE_DB_PATH"]
    (program, *arguments), folder = container["args"], {"/backups": str(backups)}
    assert Path(ours.command[0]).name == program
    command = [ours.command[0], *(folder.get(word, word) for word in arguments)]
    backups.mkdir()
    with started(ours), httpx.Client(base_url=ours.base, headers=HEADERS) as client:
        assert push(client, "stored").status_code == 200
        assert client.post("/flush").json()["status"] == "success"
        subprocess.run(command, env=environ, capture_output=True, check=True, timeout=30)
        assert push(client, "after").status_code == 200
    (made,) = backups.glob("metrics_*.db.gz")
    copy = tmp_path / "copy.db"
    copy.write_bytes(gzip.decompress(made.read_bytes()))
    assert stored(replace(ours, environ={"SQLITE_DB_PATH": str(copy)})) == {"stored": 1}
