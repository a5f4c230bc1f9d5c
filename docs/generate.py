"""Writes the reference pages from the code: `python -m docs.generate`. A test fails while a page is not what this makes."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from deploy.grafana.generate import write as write_dashboards
from docs.alerts import alerts
from docs.environment import environment
from docs.markdown import NOTE, table
from docs.metrics import metrics
from docs.options import option_table
from pipeline.cli import command_line
from pipeline.component import Declaration
from pipeline.config.check import SECTIONS
from pipeline.config.fields import ComponentConfig
from pipeline.config.model import ServiceSettings
from pipeline.registry import load_registry

FOLDER = Path(__file__).parent
WIDTH = 80


def smallest_yaml(declaration: Declaration, source: str) -> str:
    """The example in the docstring of the module that declares a component: the first block that is indented."""
    text = inspect.getdoc(sys.modules[source]) or ""
    found = re.search(r"(?:^    .*\n?(?:\n(?=    ))?)+", text, re.MULTILINE)
    assert found, f"{source}: the docstring shows no YAML for {declaration.type}"
    return textwrap.dedent(found[0]).strip()


def _component(declaration: Declaration, source: str) -> str:
    facts = [
        f"{verb} {' and '.join(sorted(signals))}."
        for verb, signals in (("Takes", declaration.takes), ("Gives", declaration.gives))
        if signals
    ]
    facts += [f"Needs an extension that offers `{each.__name__}`." for each in declaration.component.requires]
    facts += [
        f"Uses an extension that offers `{each.__name__}`, if there is one." for each in declaration.component.uses
    ]
    parts = [
        f"### {declaration.type}",
        inspect.getdoc(declaration.component) or "",
        " ".join(facts),
        option_table(declaration.config),
        f"```yaml\n{smallest_yaml(declaration, source)}\n```",
    ]
    return "\n\n".join(part for part in parts if part)


def components() -> str:
    """Every component type that is built in, with its options."""
    registry = load_registry(installed=False)
    parts = [
        "# Components",
        NOTE,
        "What may stand in a configuration, by section. Each example is laid over the shipped configuration, and is the least"
        " that works there. A *size* is `10MB`, `10MiB` or a number of bytes; a *duration* is `500ms`, `30s`, `5m`, `1h`,"
        " `90d` or a number of seconds; a *boolean* is true/false, yes/no, on/off or 1/0. Where a variable is empty, the default counts.",
        f"Every component has the option `enabled` as well, a boolean: {ComponentConfig.model_fields['enabled'].description}",
    ]
    for section, kind in SECTIONS.items():
        declared = [
            _component(registry.declarations[kind, type_], registry.sources[kind, type_])
            for type_ in registry.types(kind)
        ]
        parts += [f"## {section}", *declared] if declared else []
    parts += ["## service", inspect.getdoc(ServiceSettings) or "", option_table(ServiceSettings)]
    return "\n\n".join(parts) + "\n"


def every_command(context: click.Context) -> Iterator[click.Context]:
    """A command and all that are below it."""
    yield context
    if isinstance(context.command, click.Group):
        for name, command in sorted(context.command.commands.items()):
            yield from every_command(click.Context(command, context, name, terminal_width=WIDTH))


def _help(context: click.Context) -> str:
    """The help text, without the options that every command has."""
    formatter = context.make_formatter()
    context.command.format_usage(context, formatter)
    context.command.format_help_text(context, formatter)
    context.command.format_options(context, formatter)
    return formatter.getvalue().strip()


def commands() -> str:
    """The help text of every command."""
    top = click.Context(command_line(load_registry(installed=False)), None, "metrics-service", terminal_width=WIDTH)
    parts = ["# Commands", NOTE, f"```text\n{top.command.get_help(top)}\n```"]
    for context in list(every_command(top))[1:]:
        parts += [f"## {context.command_path.removeprefix('metrics-service ')}", f"```text\n{_help(context)}\n```"]
    return "\n\n".join(parts) + "\n"


def modules() -> str:
    """Every module of the engine and of the built-in plugins, in the words of its docstring."""
    parts = [
        "# Modules",
        NOTE,
        "The first sentence of every module. `pipeline/` never imports `plugins/`; a plugin imports the public API, which is"
        " the package `pipeline` itself, and its own folder.",
    ]
    for package in ("pipeline", "plugins"):
        rows = []
        for path in sorted((FOLDER.parent / package).rglob("*.py")):
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if said:
                first = re.split(r"(?<=\.)\s", " ".join(said.split("\n\n")[0].split()), maxsplit=1)[0]
                rows.append([f"`{path.relative_to(FOLDER.parent)}`", first])
        parts += [f"## {package}", table(["module", "what it is"], rows)]
    return "\n\n".join(parts) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "components.md": components,
    "environment.md": environment,
    "commands.md": commands,
    "modules.md": modules,
    "metrics.md": metrics,
    "alerts.md": alerts,
}

if __name__ == "__main__":
    for file_name, page in PAGES.items():
        (FOLDER / file_name).write_text(page(), encoding="utf-8")
    write_dashboards()
