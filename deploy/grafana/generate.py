"""Writes the dashboards anew from their tables; `make docs` runs it."""

from __future__ import annotations

from pathlib import Path

from deploy.grafana.model import dashboard, text_of

FOLDER = Path(__file__).parent
TABLES = {"metrics-service.json": "service.yaml", "mcp-traffic.json": "traffic.yaml"}


def made(name: str) -> str:
    """What that dashboard's file must hold."""
    return text_of(dashboard((FOLDER / TABLES[name]).read_text(encoding="utf-8")))


def write() -> None:
    """Write them all."""
    for name in TABLES:
        (FOLDER / name).write_text(made(name), encoding="utf-8")
