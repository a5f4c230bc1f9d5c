"""The way to a package that docs/plugins.md shows, gone: every file written, every command typed, in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.overlay import make_overlay, overlay_environ
from tests.running import process
from tests.test_docs import DOCS
from tests.test_third_party import EXAMPLE

RUN = re.compile(r"metrics-service run (.*)")


class Step(NamedTuple):
    """One fenced block. `path` is the file that the sentence before it names, if that ends the paragraph."""

    language: str
    text: str
    path: str | None


def steps() -> Iterator[Step]:
    """Those between the headings that are numbered, in order."""
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    walk = page.partition("## A package, in an hour\n")[2].partition("\n## ")[0]
    for before, language, text in re.findall(r"([^\n]*)\n\n```(\w+)\n(.*?)^```$", walk, re.MULTILINE | re.DOTALL):
        named = re.match(r"`([\w./-]+)` (?:becomes|is new):$", before)
        yield Step(language, text, named[1] if named else None)


class Terminal:
    """A person's, who has just come to the checkout: what they change of their environment stays."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "checkout"
        programs = make_overlay(self.folder / ".venv")
        self.environ = overlay_environ(programs) | {"PATH": os.environ["PATH"]}  # which `activate` puts them on
        self.there = ""
        self._stack = ExitStack()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def type(self, commands: str, expected_code: int = 0) -> str:
        """What these commands print."""
        *others, last = commands.strip().splitlines()
        if found := RUN.fullmatch(last):
            self.type("\n".join(others))
            self._start(found[1].split())
            return ""
        left = self.home / "left"
        script = f"set -e\ntrap 'env -0 > {left}; pwd > {left}.folder' EXIT\n{commands.replace('localhost:8890', self.there)}"
        ended = subprocess.run(
            ["sh", "-c", script], cwd=self.folder, env=self.environ, capture_output=True, text=True, timeout=200
        )
        assert ended.returncode == expected_code, f"{commands}\n{ended.stdout}\n{ended.stderr}"
        self.environ = dict(pair.split("=", 1) for pair in left.read_text().split("\0") if pair)
        self.folder = Path((self.home / "left.folder").read_text().strip())
        return ended.stdout + ended.stderr

    def _start(self, words: list[str]) -> None:
        program = shutil.which("metrics-service", path=self.environ["PATH"])
        assert program is not None
        assert words[0] == "--config"
        keys = {name: value for name, value in self.environ.items() if name.startswith("METRICS_API_KEY_")}
        service = process(self.folder, *words[2:], config=words[1], program=[program], **keys)
        _, base = self._stack.enter_context(service)
        self.there = base.removeprefix("http://")


def written(folder: Path) -> dict[str, str]:
    """The files that a person writes, without those that programs have left."""
    names = [path for pattern in ("*.toml", "*.yaml", ".gitignore", "src/**/*.py", "src/**/py.typed", "tests/*.py")
             for path in folder.glob(pattern)]  # fmt: skip
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in names}


def put(lines: str, into: str) -> str:
    """The text with each of these lines in the place of the one that begins alike, or behind the one before."""
    place = 0
    text = into.splitlines()
    for line in lines.splitlines():
        begins = line.partition("=")[0] + "="
        found = [number for number, each in enumerate(text) if each.startswith(begins)]
        if found:
            (place,) = found
            text[place] = line
        else:
            place += 1
            text.insert(place, line)
    return "\n".join(text) + "\n"


@pytest.mark.timeout(240)
def test_every_step_to_a_package_does_what_is_shown_and_leads_to_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYPY_CACHE_DIR", str(tmp_path / "mypy"))
    shown = list(steps())
    with Terminal(tmp_path) as terminal:
        for step, after in zip(shown, [*shown[1:], Step("", "", None)], strict=True):
            if step.path is not None:
                (tmp_path / step.path).write_text(step.text, encoding="utf-8")
            elif step.language == "toml":
                path = tmp_path / "metrics-service-jsonl" / "pyproject.toml"
                path.write_text(put(step.text, path.read_text(encoding="utf-8")), encoding="utf-8")
            elif step.language == "sh":
                printed = terminal.type(step.text, 2 if after.text.startswith("error:") else 0)
                if after.language == "text":
                    assert printed == after.text
            else:
                assert step.language == "text"
    (tmp_path / "metrics-service-jsonl" / "wrong.yaml").unlink()
    assert written(tmp_path / "metrics-service-jsonl") == written(EXAMPLE)
