"""The steps of docs/deploy/proxies.md, done in a folder instead of /etc, and the figures of its table."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.proxies import ROOT, replaced
from tests.test_docs import DOCS, blocks

pytestmark = pytest.mark.deploy

PAGE = DOCS / "deploy" / "proxies.md"
COMMANDS = [line for text in blocks(PAGE, "bash") for line in text.splitlines()]
SITES = {
    "nginx": ("deploy/nginx/metrics-service.conf", "sites-available/metrics-service"),
    "apache2": ("deploy/apache/metrics-service.conf", "sites-available/metrics-service.conf"),
}


@pytest.mark.parametrize("name", SITES)
def test_the_steps_make_the_site_with_ones_own_name(name: str, tmp_path: Path) -> None:
    ours, theirs = SITES[name]
    for folder in ("sites-available", "sites-enabled"):
        (tmp_path / "etc" / name / folder).mkdir(parents=True)
    steps = [line for line in COMMANDS if f"/etc/{name}/" in line]
    assert len(steps) == (3 if name == "nginx" else 2)
    for line in steps:
        here = line.replace("sudo ", "").replace("/etc/", f"{tmp_path}/etc/")
        subprocess.run(["sh", "-c", here], cwd=ROOT, check=True)
    made = (tmp_path / "etc" / name / theirs).read_text(encoding="utf-8")
    text = (ROOT / ours).read_text(encoding="utf-8")
    assert made == replaced(text, {"metrics.yourdomain.com": "metrics.example.org"})
    assert [path.read_text() for path in (tmp_path / "etc" / name / "sites-enabled").iterdir()] == (
        [made] if name == "nginx" else []
    )


@pytest.mark.parametrize("name", SITES)
def test_the_certificate_and_the_networks_are_where_the_page_says(name: str) -> None:
    site, page = ((ROOT / path).read_text(encoding="utf-8") for path in (SITES[name][0], "docs/deploy/proxies.md"))
    for path in re.findall(r"/etc/ssl/[\w/.]+", site):
        assert f"`{path}`" in page
    networks = re.findall(r"\b(?:\d+\.){3}0/\d+", site)
    assert networks == ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    assert all(f"`{network}`" in page for network in networks)
