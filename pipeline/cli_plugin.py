"""`metrics-service plugin new`: a package for a plugin, complete and green before its author has changed a line."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import click

from pipeline.component import Kind
from pipeline.errors import USER_MISTAKE, StartError
from pipeline.hookspecs import API_VERSION
from pipeline.invocation import Invocation

TEMPLATES = Path(__file__).parent / "plugin_template"
LONGEST_NAME = 24
"""Longer names would break lines of the templates, which are formatted for all that are allowed."""

SNAKE_CASE = "words of small letters and digits, joined by _"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@click.group()
def plugin() -> None:
    """Make plugins of your own."""


@plugin.command()
@click.argument("kind")
@click.argument("name")
@click.option("--into", type=click.Path(path_type=Path), default=Path(), help="The folder to put the package's into.")
@click.pass_obj
def new(invocation: Invocation, kind: str, name: str, into: Path) -> None:
    """Write a package for a plugin: a component that works, its tests, a configuration.

    KIND is receiver, processor, exporter, connector or extension. NAME is the component's type in configurations, in
    snake_case.
    """
    checked = _checked_kind(kind)
    _check_name(name)
    if source := invocation.registry.sources.get((checked, name)):
        raise _mistake(
            "NAME",
            f"there is {'an' if checked[0] in 'aeiou' else 'a'} {checked} {name!r} already, of {source} (must be another name)",
        )
    folder = into / f"metrics-service-{name.replace('_', '-')}"
    try:
        folder.mkdir(parents=True)
        for path, text in package_files(checked, name).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError:
        raise _mistake(str(folder), "exists already (give another NAME, or another folder with --into)") from None
    except OSError as error:
        raise StartError(f"{folder}: cannot be written: {error.strerror}", USER_MISTAKE) from None
    click.echo(f"{folder} is a package for the {checked} {name!r}. Next:\n")
    for line in (f"cd {folder}", "pip install -e '.[test]'", "pytest", f"metrics-service run --config {name}.yaml"):
        click.echo(f"  {line}")


def _checked_kind(kind: str) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        raise _mistake("KIND", f"{kind!r} is not a kind of component (must be one of {', '.join(Kind)})") from None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _mistake("NAME", f"{name!r} is not snake_case (must be {SNAKE_CASE}, for example {_nearest(name)})")
    if len(name) > LONGEST_NAME:
        raise _mistake("NAME", f"{name!r} is {len(name)} letters long (must be at most {LONGEST_NAME})")


def _nearest(name: str) -> str:
    """The nearest good name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    nearest = re.sub(r"[^a-z0-9]+", "_", words).strip("_0123456789")
    return nearest if _NAME.fullmatch(nearest) else "slow_calls"


def _mistake(where: str, what: str) -> StartError:
    return StartError(f"{where}: {what}", USER_MISTAKE)


def package_files(kind: Kind, name: str) -> dict[str, str]:
    """The files of a package for a plugin, by their path in its folder. `name` is one that `plugin new` allows."""
    module = f"metrics_service_{name}"
    words = {
        "api": str(API_VERSION),
        "kind": str(kind),
        "name": name,
        "module": module,
        "project": module.replace("_", "-"),
        "class_name": "".join(word.capitalize() for word in name.split("_")),
    }
    component = _filled(f"{kind}/plugin.py", words)
    configuration = _filled(f"{kind}/config.yaml", words)
    words["summary"] = component.removeprefix('"""').partition("\n")[0]
    words["yaml"] = configuration.strip()
    return {
        "pyproject.toml": _filled("pyproject.toml", words),
        "README.md": _filled("README.md", words),
        ".gitignore": _filled("gitignore", words),
        f"src/{module}/__init__.py": component,
        f"src/{module}/py.typed": "",
        f"tests/test_{name}.py": _filled(f"{kind}/test.py", words),
        f"{name}.yaml": configuration,
    }


def _filled(template: str, words: dict[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(words)
