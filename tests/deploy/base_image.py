"""A small Debian with Python, made on this machine, for images to be built on: what `python:3.11-slim` is elsewhere."""

from __future__ import annotations

import configparser
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.programs import lacking, need

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NOT_READ = ("doc", "info", "locale", "man")


def mirror() -> str:
    """Where this machine's apt gets Debian 12 from."""
    wanted = ("Created-By: Packages", "Component: main", "Codename: bookworm")
    command = [need("apt-get", "apt"), "indextargets", "--format", "$(SITE)", *wanted]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return found[0] if found else lacking("apt knows no mirror of bookworm (/etc/apt/sources.list)")


def pip_settings() -> dict[str, str]:
    """How this machine's pip is configured, by files or by variables: an index, a proxy, authorities."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    settings = (line.partition("=") for line in listed.splitlines())
    return {name.rpartition(".")[2]: shlex.split(value)[0] for name, _, value in settings}


def build_options() -> Iterator[str]:
    """What a build on this base needs of this machine: the folder of wheels that its pip looks into, if it has one."""
    folder = pip_settings().get("find-links", "")
    if folder and Path(folder).is_dir():
        yield f"--volume={folder}:{folder}:ro"


def make_base(archive: Path) -> None:
    """Write its root file system as a tar archive. pip in it is configured as on this machine."""
    settings = pip_settings()
    if AUTHORITIES.exists():
        settings["cert"] = str(AUTHORITIES)
    pip = configparser.RawConfigParser()
    pip["global"] = settings
    written = archive.with_name("pip.conf")
    with written.open("w") as file:
        pip.write(file)
    command = [need("mmdebstrap"), "--quiet", "--variant=essential", "--include=ca-certificates,passwd,python3-venv"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in NOT_READ]
    command += [f"--customize-hook=copy-in {written} /etc"]
    if AUTHORITIES.exists():
        command += [f"--customize-hook=copy-in {AUTHORITIES} {AUTHORITIES.parent}"]
    subprocess.run([*command, "bookworm", str(archive), mirror()], check=True, capture_output=True)
