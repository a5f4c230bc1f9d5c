"""nginx and Apache as private instances in front of a real service, with the site of deploy/ as it is but for ports and paths."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.plugins.exporters.otlp.certificates import Authority
from tests.programs import need
from tests.running import KEY, free_port, process, rows

ROOT = Path(__file__).parents[2]
INSIDE = "127.0.0.2"
"""The address that the tests' sites take for the internal network; everybody else is outside."""
PROXY = "127.0.0.1"
"""Where the service sees the proxy."""
START_SECONDS = 20


@dataclass(frozen=True)
class Ports:
    """Where everybody listens."""

    service: int
    series: int
    plain: int
    secure: int


@dataclass(frozen=True)
class Site:
    """A proxy that runs in front of a service."""

    folder: Path
    ports: Ports
    ca: Path

    def client(self, source: str = "127.0.0.1", key: str | None = KEY) -> httpx.Client:
        """A client with that address, which believes the certificate."""
        trusted = ssl.create_default_context(cafile=self.ca)
        transport = httpx.HTTPTransport(verify=trusted, local_address=source)
        headers = {"X-API-Key": key} if key else {}
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.ports.secure}", transport=transport, headers=headers, timeout=30
        )

    def plain(self, method: str, path: str, **options: object) -> httpx.Response:
        """A call of port 80."""
        return httpx.request(method, f"http://127.0.0.1:{self.ports.plain}{path}", **options)  # type: ignore[arg-type]

    @contextmanager
    def connected(self, source: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
        """A connection of TLS from that address, for bytes that no library would send."""
        trusted = ssl.create_default_context(cafile=self.ca)
        with (
            socket.create_connection(("127.0.0.1", self.ports.secure), 20, source_address=(source, 0)) as plain,
            trusted.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            yield secure

    def exchange(self, *pieces: bytes) -> bytes:
        """All that comes back until the connection is closed, or nothing has come for a second. Each piece is a packet."""
        received = b""
        with self.connected() as secure:
            secure.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in pieces:
                secure.sendall(piece)
            secure.settimeout(20)
            try:
                while piece := secure.recv(65536):
                    received += piece
                    secure.settimeout(1)
            except (TimeoutError, ConnectionError, ssl.SSLEOFError):
                pass
        return received

    def log(self, name: str) -> str:
        """What was logged under that name."""
        return (self.folder / name).read_text(encoding="utf-8")

    def stored(self, sql: str = "SELECT count(*) FROM metrics") -> int:
        """A number from the service's database, once all that was accepted is in it."""
        with self.client() as client:
            client.post("/flush").raise_for_status()
        return int(rows(self.folder / "metrics.db", sql)[0][0])


def free_ports() -> Ports:
    """Four that nobody listens on."""
    with closing(socket.socket()), closing(socket.socket()):
        return Ports(*(free_port() for _ in range(4)))


def replaced(text: str, replacements: Mapping[str, str]) -> str:
    """The text with these words replaced; each must be there."""
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def certificate(folder: Path) -> tuple[Path, dict[str, str]]:
    """An authority's certificate, and what replaces the paths in a site by a certificate of it."""
    made, key = Authority(folder / "tls").sign("metrics", "DNS:metrics.yourdomain.com,IP:127.0.0.1")
    paths = {"/etc/ssl/certs/metrics.crt": str(made), "/etc/ssl/private/metrics.key": str(key)}
    return folder / "tls" / "ca.pem", paths


@contextmanager
def serving(command: Sequence[str], port: int, log: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """A proxy in the foreground, from when it listens until it is told to stop."""
    running = subprocess.Popen(command, env={**os.environ, **environ}, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except ConnectionRefusedError:
                said = f"{running.stderr.read() if running.stderr and running.poll() is not None else ''}"
                said += log.read_text() if log.exists() else ""
                assert running.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.02)
        yield
    finally:
        running.terminate()
        running.communicate(timeout=20)


@contextmanager
def nginx(folder: Path, ports: Ports, site: Path = ROOT / "deploy/nginx/metrics-service.conf") -> Iterator[Site]:
    """nginx with our site."""
    program = need("nginx")
    ca, paths = certificate(folder)
    text = replaced(
        site.read_text(encoding="utf-8"),
        {
            **paths,
            "listen 80;": f"listen 127.0.0.1:{ports.plain};",
            "listen 443 ssl;": f"listen 127.0.0.1:{ports.secure} ssl;",
            "127.0.0.1:8890": f"127.0.0.1:{ports.service}",
            "127.0.0.1:9465": f"127.0.0.1:{ports.series}",
            "10.0.0.0/8 ": f"{INSIDE} ",
        },
    )
    (folder / "site.conf").write_text(text, encoding="utf-8")
    user = "user root root;\n" if os.geteuid() == 0 else ""  # or its workers could not write to the test's folder
    temporary = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"events {{ worker_connections 512; }}\nhttp {{\n    access_log {folder}/access.log;\n{temporary}"
        f"    include {folder}/site.conf;\n}}\n",
        encoding="utf-8",
    )
    command = [program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr
    with serving(command, ports.secure, folder / "error.log", {}):
        yield Site(folder, ports, ca)


@contextmanager
def apache(
    folder: Path, ports: Ports, modules: Sequence[str], site: Path = ROOT / "deploy/apache/metrics-service.conf"
) -> Iterator[Site]:
    """Apache with our site, with the modules that Debian enables and these."""
    program = need("apache2")
    ca, paths = certificate(folder)
    text = replaced(
        site.read_text(encoding="utf-8"),
        {
            **paths,
            "<VirtualHost *:80>": f"<VirtualHost 127.0.0.1:{ports.plain}>",
            "<VirtualHost *:443>": f"<VirtualHost 127.0.0.1:{ports.secure}>",
            "127.0.0.1:8890": f"127.0.0.1:{ports.service}",
            "127.0.0.1:9465": f"127.0.0.1:{ports.series}",
            "10.0.0.0/8 ": f"{INSIDE} ",
        },
    )
    (folder / "site.conf").write_text(text, encoding="utf-8")
    enabled = [path for suffix in (".load", ".conf") for path in _files(enabling(modules), suffix)]
    includes = ["mods-enabled/*.load", *enabled, "mods-enabled/*.conf", str(folder / "site.conf")]
    (folder / "apache2.conf").write_text(
        f"ServerRoot /etc/apache2\nServerName localhost\nDefaultRuntimeDir {folder}\nPidFile {folder}/apache2.pid\n"
        f"ErrorLog {folder}/error.log\nUser www-data\nGroup www-data\nListen 127.0.0.1:{ports.plain}\n"
        f"Listen 127.0.0.1:{ports.secure}\n"
        'LogFormat "%h %l %u %t \\"%r\\" %>s %O \\"%{Referer}i\\" \\"%{User-Agent}i\\"" combined\n'
        + "".join(f"Include {path}\n" for path in includes),
        encoding="utf-8",
    )
    environ = {"APACHE_RUN_DIR": str(folder), "APACHE_LOG_DIR": str(folder)}
    command = [program, "-f", str(folder / "apache2.conf")]
    tested = subprocess.run(
        [*command, "-t"], env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stderr
    assert "warn" not in tested.stderr.lower(), tested.stderr
    with serving([*command, "-DFOREGROUND"], ports.secure, folder / "error.log", environ):
        yield Site(folder, ports, ca)


MODULES = Path("/etc/apache2/mods-available")


def enabling(modules: Sequence[str]) -> list[str]:
    """What `a2enmod` enables for these that Debian has not enabled already: they and what they depend on, that first."""
    found: list[str] = []
    for module in modules:
        text = (MODULES / f"{module}.load").read_text(encoding="utf-8")
        (needed,) = re.findall(r"^# Depends: (.*)$", text, re.MULTILINE) or [""]
        found += [*enabling(needed.split()), module]
    return [each for each in dict.fromkeys(found) if not (MODULES.parent / "mods-enabled" / f"{each}.load").exists()]


def _files(modules: Sequence[str], suffix: str) -> list[str]:
    paths = [MODULES / f"{module}{suffix}" for module in modules]
    return [str(path) for path in paths if path.exists()]


@contextmanager
def service(folder: Path, ports: Ports, **variables: str) -> Iterator[None]:
    """The service that they stand in front of, as the guide has it in production."""
    listening = {"METRICS_SERVICE_PORT": str(ports.service), "OTEL_PROMETHEUS_PORT": str(ports.series)}
    trusted = {"METRICS_TRUSTED_PROXIES": PROXY, "METRICS_RATE_LIMIT": "5000"}
    with process(folder, **{**listening, **trusted, **variables}):
        yield
