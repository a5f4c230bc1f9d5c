"""What the fault tests have counted, as a table at the end of the run; with SOAK of every test, and in build/soak.txt as they end.

FIGURES is a file that keeps the table for the next run, which shows it above its own.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

Figure = int | str | Mapping[int, int]
Report = Callable[..., None]
"""Called with figures by name, once or several times in a test. Of a test that runs several times, numbers are added up."""
FILE = Path("build") / "soak.txt"
FIGURES = os.environ.get("FIGURES")
SOAK = bool(os.environ.get("SOAK"))


@dataclass
class Row:
    """One test, in all its forms."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0
    figures: dict[str, Figure] = field(default_factory=dict)

    def add(self, name: str, figure: Figure) -> None:
        """A figure more."""
        known = self.figures.get(name)
        if isinstance(known, int) and isinstance(figure, int):
            self.figures[name] = known + figure
        elif isinstance(known, str) and isinstance(figure, str) and figure not in known.split(" | "):
            self.figures[name] = f"{known} | {figure}"
        else:
            self.figures[name] = figure

    def text(self, name: str) -> str:
        """For people."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        figures = ", ".join(f"{name} {figure}" for name, figure in self.figures.items())
        return f"{name}: {outcomes}, {self.seconds:.0f} s" + (f"\n    {figures}" if figures else "")


_rows: dict[str, Row] = {}


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Say a figure or more of this test."""

    def say(**figures: Figure) -> None:
        request.node.user_properties += [(f"figure {name.replace('_', ' ')}", value) for name, value in figures.items()]

    return say


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test has said, and how it ended. A worker of pytest-xdist hands that over."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.passed):
        return
    figures = [
        (name.removeprefix("figure "), cast(Figure, value))
        for name, value in report.user_properties
        if report.when == "call" and name.startswith("figure ")
    ]
    if not (figures or SOAK):
        return
    name = report.nodeid.removeprefix("tests/")
    row = Row()
    for each in (row, _rows.setdefault(name.partition("[")[0], Row())):
        each.outcomes[report.outcome] += 1
        each.seconds += report.duration
        for figure in figures:
            each.add(*figure)
    if SOAK:
        FILE.parent.mkdir(exist_ok=True)
        with FILE.open("a") as file:
            file.write(f"{row.text(name)}\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the table."""
    lines = [row.text(name) for name, row in _rows.items()]
    if FIGURES:
        lines = [*(Path(FIGURES).read_text().splitlines() if Path(FIGURES).exists() else []), *lines]
        Path(FIGURES).parent.mkdir(exist_ok=True)
        Path(FIGURES).write_text("".join(f"{line}\n" for line in lines))
    if lines:
        terminalreporter.section("figures")
    for line in lines:
        terminalreporter.write_line(line)
