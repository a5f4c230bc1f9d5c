"""The steps of docs/deploy/containers.md: those for files are done in a folder, those for Docker name what there is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.proxies import ROOT, certificate
from tests.test_docs import DOCS, blocks

pytestmark = pytest.mark.deploy

PAGE = DOCS / "deploy" / "containers.md"
COMMANDS = [line for text in blocks(PAGE, "bash") for line in text.splitlines()]
DOCKER = [line for line in COMMANDS if line.startswith("docker ")]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_the_secrets_belong_to_who_reads_them_and_to_nobody_else(tmp_path: Path) -> None:
    _, made = certificate(tmp_path)
    paths = {there: str(tmp_path / Path(there).name) for there in made}
    for there, here in paths.items():
        shutil.copy(made[there], here)
    (tmp_path / "deploy/compose").mkdir(parents=True)
    shutil.copy(ROOT / "deploy/compose/nginx.conf", tmp_path / "deploy/compose")
    for line in COMMANDS:
        if line not in DOCKER:
            for there, here in paths.items():
                line = line.replace(there, shlex.quote(here))
            subprocess.run(["sh", "-ec", line.replace("sudo ", "")], cwd=tmp_path, check=True)
    secrets = tmp_path / "deploy/compose/secrets"
    owners = {each.name: (each.stat().st_uid, each.stat().st_mode & 0o777) for each in secrets.iterdir()}
    assert owners["metrics_admin_key"] == (1001, 0o400)
    assert {owner for name, owner in owners.items() if name != "metrics_admin_key"} == {(101, 0o400)}
    assert len((secrets / "metrics_admin_key").read_text().strip()) == 64
    conf = (tmp_path / "deploy/compose/nginx.conf").read_text(encoding="utf-8")
    assert "metrics.example.org" in conf
    assert "yourdomain" not in conf


@pytest.mark.parametrize("line", DOCKER)
def test_what_docker_is_told_names_what_there_is(line: str) -> None:
    words = shlex.split(line)
    if words[1] == "build":
        target = words[words.index("--target") + 1]
        assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        return
    file = words[words.index("-f") + 1] if "-f" in words else "compose.yaml"
    services = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["services"]
    (verb,) = [word for word in words if word in ("up", "exec", "logs", "cp")]
    rest = words[words.index(verb) + 1 :]
    assert verb == "up" or rest[0].partition(":")[0] in services
