"""An operator who types what a page says, on a machine that is a folder: other paths, no sudo, no user, no manager of services."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.deploy.unit import environment, exec_start, settings, with_values
from tests.leaks import secret
from tests.overlay import make_overlay, overlay_environ
from tests.programs import need
from tests.running import free_port, wait_until_healthy
from tests.test_docs import ROOT

PLACES = ("/opt/", "/etc/", "/var/lib/sqlite", "/backups")
NOT_DONE = ("useradd", "userdel", "journalctl", "make", "systemctl status", "systemctl daemon-reload")
"""What would change this machine, or asks a manager that is not there."""
LIBRARIES = "pip install --require-hashes"
"""Would ask a registry: the libraries of the tests' own environment are there instead."""
UNIT = "metrics-service"


class Operator:
    """Does one line after the other, and keeps what a person would keep in mind: the key."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: list[str] = []
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.log = root / "journal.log"
        self._ports = {"METRICS_SERVICE_PORT": str(free_port()), "OTEL_PROMETHEUS_PORT": str(free_port())}
        for folder in ("opt", "etc/systemd/system", "var/lib", "usr/lib/systemd/system", "dist"):
            (root / folder).mkdir(parents=True)
        for target in Path("/lib/systemd/system").glob("*.target"):
            shutil.copy(target, root / "usr/lib/systemd/system")

    @property
    def base(self) -> str:
        """Where the service listens."""
        return f"http://127.0.0.1:{self._ports['METRICS_SERVICE_PORT']}"

    def place(self, name: str) -> Path:
        """Where a path of the page is."""
        return self.root / name.lstrip("/")

    def type(self, line: str, expected_code: int = 0) -> str:
        """What a line prints."""
        bare = re.sub(r"sudo (-u \w+ )?", "", line).removeprefix("sudo")
        if bare.startswith(NOT_DONE) or LIBRARIES in bare:
            return ""
        self.done.append(line)
        if bare.startswith("systemctl"):
            return self._manage(*shlex.split(bare)[1:])
        if bare.startswith("edit "):
            return self._edit(self.place(bare.partition(" ")[2]))
        if bare.startswith("python3 -m venv "):
            make_overlay(self.place(bare.rpartition(" ")[2]))
            return ""
        return self._run(bare, expected_code)

    def _run(self, line: str, expected_code: int) -> str:
        for place in PLACES:
            line = re.sub(rf"(?<![\w.]){place}", f"{self.root}{place}", line)
        line = re.sub(r"-o \w+ -g \w+ ", "", line).replace("localhost:8890", self.base.removeprefix("http://"))
        line = line.replace(".venv/bin/pip wheel", f"{sys.executable} -m pip wheel").replace(
            " dist", f" {self.root}/dist"
        )
        environ = overlay_environ(self.place("/opt/metrics-service/.venv/bin")) | {
            "KEY": self.key,
            "TMPDIR": str(self.root),
        }
        ended = subprocess.run(
            ["sh", "-c", line], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=100, check=False
        )
        assert ended.returncode == expected_code, f"{line}\n{ended.stdout}\n{ended.stderr}"
        if found := re.search(r"X-API-Key: (mcp_metrics_\S+)", ended.stdout):
            self.key = secret(found[1])
        self._put_scripts_right()
        return ended.stdout + ended.stderr

    def _put_scripts_right(self) -> None:
        """What was installed names the places of a real machine."""
        for script in self.place("/opt/scripts").glob("*.sh"):
            text = re.sub(r"(?<![\w.])/(opt/metrics-service/|etc/|backups/)", rf"{self.root}/\1", script.read_text())
            script.write_text(text.replace(f"{self.root}{self.root}", str(self.root)))

    def _edit(self, config: Path) -> str:
        own = {
            "SQLITE_DB_PATH": str(self.place("/var/lib/sqlite/metrics.db")),
            "METRICS_BACKUP_DIR": str(self.place("/backups/metrics")),
            "METRICS_SERVICE_HOST": "127.0.0.1",
            **self._ports,
        }
        config.write_text(with_values(config.read_text(), own))
        return ""

    def _manage(self, verb: str, *names: str) -> str:
        units = [name for name in names if not name.startswith("--")]
        if verb in ("enable", "disable"):
            command = [need("systemctl", "systemd"), f"--root={self.root}", verb, *units]
            subprocess.run(command, check=True, capture_output=True)
        if verb in ("stop", "restart") or (verb == "disable" and UNIT in units):
            self.stop()
        if verb in ("start", "restart") and UNIT in units:
            self.start()
        if verb == "reload":
            self.reload()
        if verb == "start" and "metrics-service-backup.service" in units:
            service = settings(self.place("/etc/systemd/system/metrics-service-backup.service"), "Service")
            return self._run(service["ExecStart"][0], 0)
        return ""

    def command(self, *more: str) -> list[str]:
        """The command of the installed unit, on this machine."""
        unit = self.place("/etc/systemd/system/metrics-service.service")
        _, _, _, *rest = exec_start(self.place("/etc/metrics-service/config"), unit)
        return [str(self.place("/opt/metrics-service/.venv/bin/metrics-service")), *rest, *more]

    def start(self, *more: str) -> None:
        """Start the service as its unit does; wait until it is healthy."""
        assert self.process is None, "it runs already"
        unit = self.place("/etc/systemd/system/metrics-service.service")
        environ = environment(unit=unit) | {"PYTHONPATH": ""}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(*more), env=environ, cwd=self.root, stderr=log, stdout=log)
        wait_until_healthy(self.base, self.process, self.log)

    def reload(self) -> None:
        """Send the signal of the unit's `ExecReload=`; wait until the log says `ready` once more."""
        assert self.process is not None
        before = self.log.read_text().count('"ready"')
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while self.log.read_text().count('"ready"') == before:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        assert "not reloaded" not in self.log.read_text()

    def stop(self) -> None:
        """Stop it as systemd does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(30) == 0, self.log.read_text()
            self.process = None

    def leave(self) -> None:
        """Whatever has happened, leave no process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def lines(page: Path, *headings: str) -> Iterator[str]:
    """The commands below these headings of a page, in order; a heading that is not there is a mistake."""
    text = page.read_text(encoding="utf-8")
    for heading in headings:
        _, found, rest = text.partition(f"\n## {heading}\n")
        assert found, heading
        for block in re.findall(r"^```sh\n(.*?)^```$", rest.partition("\n## ")[0], re.MULTILINE | re.DOTALL):
            yield from block.splitlines()
