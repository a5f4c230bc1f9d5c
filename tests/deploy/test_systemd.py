"""The unit: what systemd's own tools say of it, and our process as it starts it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from pipeline.config.load import load_configuration, read_env_file
from pipeline.hard_exit import MARGIN
from pipeline.registry import load_registry
from tests.deploy.unit import BACKUP, CONFIG, FOLDER, UNIT, configured, environment, exec_start, seconds, settings
from tests.leaks import secret
from tests.programs import lacking, need
from tests.running import free_port, wait_until_healthy
from tests.test_docs import DOCS, table
from tests.test_docs_run import push_and_flush, stored

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(120)]

KEY = secret("key-of-the-unit-that-is-long-enough-for-no-warning")
GENERATOR = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
PROGRAM = Path("opt/metrics-service/.venv/bin/metrics-service")
LISTED = {
    "SQLITE_DB_PATH", "METRICS_SERVICE_HOST", "METRICS_SERVICE_PORT", "OTEL_PROMETHEUS_ENABLED", "OTEL_PROMETHEUS_PORT",
    "METRICS_RATE_LIMIT", "METRICS_RETENTION_DAYS", "BATCH_SIZE", "FLUSH_INTERVAL_SECONDS", "METRICS_BACKUP_DIR",
}  # fmt: skip
"""What the guide sets, and where backups are."""


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    """What `systemd-analyze` says."""
    command = [need("systemd-analyze", "systemd"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def shipped(name: str) -> Path:
    """Where the unit of that name is."""
    return next(folder / name for folder in (FOLDER, BACKUP) if (folder / name).exists())


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of a machine with systemd's own targets, our programs, and all units that we ship."""
    need("systemd-analyze", "systemd")
    root = tmp_path / "machine"
    units, ours = root / "usr/lib/systemd/system", root / "etc/systemd/system"
    units.mkdir(parents=True)
    ours.mkdir(parents=True)
    for target in Path("/lib/systemd/system").glob("*.target"):
        shutil.copy(target, units)
    for name in UNITS:
        shutil.copy(shipped(name), ours)
    for program in (PROGRAM, Path("bin/kill"), Path("opt/scripts/backup-metrics-db.sh")):
        (root / program).parent.mkdir(parents=True)
        (root / program).touch(0o755)
    return root


UNITS = sorted(
    path.name for folder in (FOLDER, BACKUP) for path in folder.glob("*.*") if path.suffix in (".service", ".timer")
)
SERVICES = [name for name in UNITS if name.endswith(".service")]


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_to_say_of_a_unit(machine: Path, name: str) -> None:
    assert analyze("verify", f"--root={machine}", "--man=no", name).stderr == ""


@pytest.mark.parametrize(
    ("right", "wrong"), [("KillMode", "KilMode"), ("WatchdogSec=30", "WatchdogSec=3o"), (".venv/bin", ".venv/no")]
)
def test_systemd_finds_what_is_wrong_with_one(machine: Path, right: str, wrong: str) -> None:
    unit = machine / "etc/systemd/system" / UNIT.name
    unit.write_text(unit.read_text().replace(right, wrong))
    assert analyze("verify", f"--root={machine}", "--man=no", UNIT.name).stderr != ""


@pytest.mark.parametrize("name", SERVICES)
def test_the_unit_may_do_little(name: str) -> None:
    """20 is 2.0 of 10, where 10 is a service that may do everything."""
    judged = analyze("security", "--offline=true", "--threshold=20", str(shipped(name)))
    assert judged.returncode == 0, judged.stdout


def test_the_timer_comes_once_a_day_and_the_cron_line_at_the_same_time() -> None:
    (calendar,) = settings(BACKUP / "metrics-service-backup.timer", "Timer")["OnCalendar"]
    shown = analyze("calendar", "--iterations=2", "--base-time=2026-01-01 00:00:00 UTC", calendar).stdout
    assert re.findall(r"Thu 2026-01-01 02:00:00|Fri 2026-01-02 02:00:00", shown) != []
    (line,) = [line for line in (BACKUP / "metrics-service-backup.cron").read_text().splitlines() if line[0] != "#"]
    assert line.split() == ["0", "2", "*", "*", "*", "metrics", "/opt/scripts/backup-metrics-db.sh"]


@pytest.mark.parametrize(("wrong", "code"), [("accept", 0), ("acept", 1)])
def test_the_rules_of_the_firewall_can_be_loaded(tmp_path: Path, wrong: str, code: int) -> None:
    rules = (FOLDER.parent / "firewall" / "metrics-service.nft").read_text()
    (tmp_path / "rules.nft").write_text(rules.replace("@clients accept", f"@clients {wrong}"))
    command = [need("nft", "nftables"), "-c", "-f", str(tmp_path / "rules.nft")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if "not permitted" in checked.stderr:
        lacking("nft must run as root to check rules")
    assert checked.returncode == code, checked.stderr


def test_the_unit_has_the_values_of_the_deployment_guide_and_fits_the_service() -> None:
    service = settings(UNIT, "Service")
    guide = {
        "User": "metrics",
        "Group": "metrics",
        "WorkingDirectory": "/opt/metrics-service",
        "ExecReload": "/bin/kill -HUP $MAINPID",
        "KillMode": "mixed",
        "Restart": "always",
        "RestartSec": "5",
        "StandardOutput": "journal",
        "StandardError": "journal",
        "SyslogIdentifier": "metrics-service",
    }
    assert {name: service[name] for name in guide} == {name: [value] for name, value in guide.items()}
    assert settings(UNIT, "Install")["WantedBy"] == ["multi-user.target"]
    codes = table(DOCS / "operating.md", "exit code")
    (kept_down,) = service["RestartPreventExitStatus"]
    assert kept_down.split() == ["2", "78"]
    assert set(kept_down.split()) <= codes.keys()
    ours = load_configuration(["production"], [], {}, load_registry(installed=False)).settings
    assert seconds(service["TimeoutStopSec"][0]) >= ours.drain_delay + 2 * ours.stop_timeout + MARGIN + 1
    assert read_env_file(CONFIG)["SQLITE_DB_PATH"].startswith(f"{service['ReadWritePaths'][0]}/")


def by_systemd(text: str, folder: Path) -> dict[str, str]:
    """How systemd reads a file of variables: by the program that reads users' environment.d with the same code."""
    if not GENERATOR.exists():
        lacking(f"{GENERATOR} is missing (apt-get install systemd)")
    (folder / "environment.d").mkdir(parents=True)
    (folder / "environment.d" / "one.conf").write_text(text, encoding="utf-8")
    environ = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    read = subprocess.run([GENERATOR], env=environ, capture_output=True, text=True, check=True)
    assert read.stderr == ""
    # It writes the values for a shell to read.
    found = dict(line.split("=", 1) for line in read.stdout.splitlines())
    # The machine has variables of its own there.
    return {name: "".join(shlex.split(value.removeprefix("$"))) for name, value in found.items() if f"{name}=" in text}


def by_shell(path: Path) -> dict[str, str]:
    shown = subprocess.run(["env", "-i", "sh", "-c", f"set -a; . {path}; env -0"], capture_output=True, check=True)
    found = dict(pair.split("=", 1) for pair in shown.stdout.decode().split("\0") if pair)
    return {name: value for name, value in found.items() if name not in ("PWD", "_", "OLDPWD", "SHLVL")}


def test_the_configuration_means_the_same_to_systemd_to_a_shell_and_to_us(tmp_path: Path) -> None:
    ours = read_env_file(CONFIG)
    assert ours.keys() == LISTED
    assert by_systemd(CONFIG.read_text(), tmp_path) == ours
    assert by_shell(CONFIG) == ours


def test_a_comment_behind_a_value_is_what_systemd_would_read_differently(tmp_path: Path) -> None:
    text = 'METRICS_RATE_LIMIT="100"  # Lower for development\n'
    (tmp_path / "file").write_text(text)
    assert by_systemd(text, tmp_path) != read_env_file(tmp_path / "file") == {"METRICS_RATE_LIMIT": "100"}


class Started(NamedTuple):
    """A process as the unit starts it."""

    process: subprocess.Popen[bytes]
    base: str
    notified: socket.socket
    log: Path


@contextmanager
def started(folder: Path, prefix: Sequence[str] = (), **variables: str) -> Iterator[Started]:
    """Our process with exactly the command and the environment of the unit, but for paths and ports; ready."""
    config, base = configured(folder, METRICS_API_KEY_TEST=KEY, **variables)
    log = folder / "journal.log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(30)
        with log.open("wb") as to:
            process = subprocess.Popen(
                [*prefix, *exec_start(config)],
                env=environment(str(folder / "notify")),
                cwd=folder,
                stdout=to,
                stderr=to,
                umask=int(settings(UNIT, "Service")["UMask"][0], 8),
                start_new_session=True,
            )
        try:
            assert notified.recv(4096).startswith(b"READY=1\n"), log.read_text()
            wait_until_healthy(base, process, log)
            yield Started(process, base, notified, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_our_process_starts_as_the_unit_starts_it_and_stops_in_time(tmp_path: Path) -> None:
    service = settings(UNIT, "Service")
    with started(tmp_path) as one:
        push_and_flush(one.base, KEY)
        reload = service["ExecReload"][0].replace("$MAINPID", str(one.process.pid))
        subprocess.run(shlex.split(reload), check=True)
        push_and_flush(one.base, KEY)
        one.process.terminate()
        assert one.process.wait(seconds(service["TimeoutStopSec"][0])) == 0
        while not (heard := one.notified.recv(4096)).startswith(b"STOPPING=1\n"):
            assert b"READY=1" in heard or heard.startswith((b"RELOADING=1", b"STATUS=", b"WATCHDOG=1"))
    assert stored(tmp_path / "metrics.db") == [1.0, 1.0]
    assert (tmp_path / "metrics.db").stat().st_mode & 0o777 == 0o640


def test_a_process_that_the_watchdog_ends_says_where_it_stood(tmp_path: Path) -> None:
    with started(tmp_path) as one:
        one.process.send_signal(signal.SIGABRT)
        assert one.process.wait(20) == -signal.SIGABRT
        log = one.log.read_text()
    assert "Fatal Python error: Aborted" in log
    assert re.search(r'File ".*pipeline/service\.py", line \d+ in |File ".*asyncio/', log)


@cache
def syscalls(group: str) -> frozenset[str]:
    """The system calls of one of systemd's groups, and of those in it."""
    lines = [line.strip() for line in analyze("syscall-filter", group).stdout.splitlines()[1:]]
    names = [line for line in lines if line and not line.startswith("#")]
    return frozenset[str]().union(*(syscalls(name) if name.startswith("@") else {name} for name in names))


def allowed() -> frozenset[str]:
    """Those that the unit's filters let pass."""
    passed: frozenset[str] = frozenset()
    for line in settings(UNIT, "Service")["SystemCallFilter"]:
        named = [syscalls(name) for name in line.lstrip("~").split()]
        passed = passed.difference(*named) if line.startswith("~") else passed.union(*named)
    return passed


@pytest.mark.parametrize(("server", "protocol"), [("hypercorn", "http/protobuf"), ("uvicorn", "grpc")])
def test_what_the_unit_forbids_our_process_does_not_do(tmp_path: Path, server: str, protocol: str) -> None:
    trace = tmp_path / "trace"
    forwards = {"OTEL_OTLP_ENDPOINT": f"http://localhost:{free_port()}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    watched = [need("strace"), "-f", "-qq", "-o", str(trace)]
    with started(tmp_path, watched, METRICS_SERVER=server, **forwards) as one:
        headers = {"X-API-Key": KEY}
        event = {"service": "test", "metrics": [{"type": "custom", "value": 1}]}
        assert httpx.post(f"{one.base}/metrics", headers=headers, json=event).status_code == 200
        assert httpx.post(f"{one.base}/flush", headers=headers, timeout=30).json()["status"] == "partial"
        (running,) = re.findall(r"^(\d+) +execve\(", trace.read_text(), re.MULTILINE)[:1]
        os.kill(int(running), signal.SIGTERM)
        assert one.process.wait(30) == 0
    lines = trace.read_text(errors="replace").splitlines()
    used = {found[1] for line in lines if (found := re.match(r"\d+ +(\w+)\(", line))}
    assert {"openat", "fdatasync", "sendto"} <= used, "the trace is one"
    # SQLite gives its files the database's owner if it runs as root, which it does only in tests.
    assert used - allowed() - {"fchown"} == set()
    (families,) = settings(UNIT, "Service")["RestrictAddressFamilies"]
    opened = {found[1] for line in lines if (found := re.search(r" socket\((\w+),", line))}
    assert "AF_INET" in opened
    assert opened <= set(families.split())
    executable = [line for line in lines if re.search(r" (mprotect|pkey_mprotect|shmat|mmap)\(.*_EXEC", line)]
    # MemoryDenyWriteExecute: nothing that is written becomes executable, by either way.
    assert [line for line in executable if "mprotect" in line or "PROT_WRITE" in line] == []
