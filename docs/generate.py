"""Writes the reference pages from the code: `python -m docs.generate`. A test fails while a page is not what this makes."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
import yaml
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from deploy.grafana.generate import write as write_dashboards
from docs.alerts import alerts
from docs.markdown import NOTE, table
from docs.metrics import metrics
from pipeline.cli import command_line
from pipeline.component import Declaration
from pipeline.config.annotations import SECRETS, alternatives, is_class
from pipeline.config.check import SECTIONS
from pipeline.config.fields import ComponentConfig, parse_boolean, parse_duration, parse_size
from pipeline.config.files import SHIPPED, shipped_folder
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration, ServiceSettings
from pipeline.registry import Registry, load_registry
from plugins.extensions.api_keys.extension import ApiKeysConfig

FOLDER = Path(__file__).parent
WIDTH = 80

_PARSED = {parse_size: "size", parse_duration: "duration", parse_boolean: "boolean"}
_PLAIN = {bool: "boolean", int: "integer", float: "number", str: "text", Path: "path"}
_SIZES = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6, "KB": 10**3}
_DURATIONS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LIMITS = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "min_length": "at least {} long"}


def _parser(field: FieldInfo) -> str | None:
    """How the text of an option is read, where that is more than its type says."""
    functions = [each.func for each in field.metadata if isinstance(each, BeforeValidator)]
    return next((_PARSED[each] for each in functions if each in _PARSED), None)


def _type(field: FieldInfo) -> str:
    parsed = _parser(field)
    name = parsed or " or ".join(_name(each) for each in alternatives(field.annotation) if each is not NoneType)
    limits = [
        (words, getattr(each, limit))
        for each in field.metadata
        for limit, words in _LIMITS.items()
        if hasattr(each, limit)
    ]
    # That a size or a duration is not negative needs no saying.
    said = [words.format(_shown(limit, parsed)) for words, limit in limits if limit or parsed is None]
    return ", ".join([name, *said])


def _name(one: Any) -> str:
    if get_origin(one) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(one))
    if is_class(one, StrEnum):
        return " or ".join(f"`{value}`" for value in one)
    if is_class(one, Mapping):
        return f"mapping of names to {_item(get_args(one)[1])}"
    if is_class(one, (tuple, list)):
        return f"list of {_item(get_args(one)[0])}"
    return "secret" if is_class(one, SECRETS) else _PLAIN.get(one, "any value")


def _item(annotation: Any) -> str:
    """What a mapping or a list holds; that there are several alternatives is for the description to say."""
    found = alternatives(annotation)
    return _name(found[0]) if len(found) == 1 else "any value"


def _shown(value: Any, parsed: str | None = None) -> str:
    """A value as it may stand in YAML; nothing for none."""
    if value is None:
        return ""
    if parsed in ("size", "duration"):
        units = _SIZES if parsed == "size" else _DURATIONS
        unit = next((unit for unit, size in units.items() if value and value % size == 0), "")
        return f"{value / units.get(unit, 1):g}{unit}"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    shown = _shown(field.get_default(call_default_factory=True), _parser(field))
    return f"`{shown}`" if shown else "none"


def _options(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option of a model, those of models in it by their path."""
    for name, field in model.model_fields.items():
        inner = next(_models(field.annotation), None)
        if inner is not None:
            yield from _options(inner[1], f"{prefix}{name}{inner[0]}.")
        elif prefix or name not in ComponentConfig.model_fields:
            yield f"{prefix}{name}", field


def _models(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models that a value of this type is, or holds under names, or in a list; with what is added to its path."""
    for outer in alternatives(annotation):
        path, inside = "", [outer]
        if is_class(outer, Mapping):
            path, inside = ".ID", alternatives(outer, ("ID",))
        elif is_class(outer, (tuple, list)):
            path, inside = "[]", alternatives(outer, (0,))
        yield from ((path, each) for each in inside if is_class(each, BaseModel))


def _option_table(model: type[BaseModel]) -> str:
    rows = [[f"`{name}`", _type(field), _default(field), field.description or ""] for name, field in _options(model)]
    return table(["option", "type", "default", "meaning"], rows) if rows else "It has no options."


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
    parts = [
        f"### {declaration.type}",
        inspect.getdoc(declaration.component) or "",
        " ".join(facts),
        _option_table(declaration.config),
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
    parts += ["## service", inspect.getdoc(ServiceSettings) or "", _option_table(ServiceSettings)]
    return "\n\n".join(parts) + "\n"


Steps = tuple[str, ...]


def variables() -> dict[str, list[Steps]]:
    """The options that each variable in the shipped files sets."""
    found: dict[str, list[Steps]] = {}
    for name in ("base", *SHIPPED):
        tree = yaml.safe_load((shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        for steps, text in _texts(tree, ()):
            for variable in re.findall(r"\$\{env:(\w+)", text):
                if steps not in (known := found.setdefault(variable, [])):
                    known.append(steps)
    return found


def _texts(node: Any, steps: Steps) -> Iterator[tuple[Steps, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, (*steps, key))
    elif isinstance(node, str):
        yield steps, node


def _field(registry: Registry, steps: Steps) -> FieldInfo:
    section, *way = steps
    if section == "service":
        options = dict(_options(ServiceSettings))
    else:
        config = registry.declarations[SECTIONS[section], way.pop(0)].config
        options = {**ComponentConfig.model_fields, **dict(_options(config))}
    return options[".".join(way)]


def _value(configuration: Configuration, steps: Steps) -> Any:
    section, *way = steps
    value: Any = configuration.settings
    if section != "service":
        value = configuration.configured[SECTIONS[section], way.pop(0)].config
    for step in way:
        value = getattr(value, step)
    return value


def environment() -> str:
    """Every variable that the shipped configuration reads, with its default in each environment."""
    registry = load_registry(installed=False)
    loaded = [load_configuration([name], [], {}, registry) for name in SHIPPED]
    rows = []
    for variable, options in variables().items():
        field = _field(registry, options[0])
        shown = [{_shown(_value(each, steps), _parser(field)) for steps in options} for each in loaded]
        defaults = [" or ".join(f"`{default}`" if default else "none" for default in sorted(each)) for each in shown]
        names = ", ".join(f"`{'.'.join(steps)}`" for steps in options)
        rows.append([f"`{variable}`", names, *defaults, field.description or ""])
    prefix = ApiKeysConfig.model_fields["preshared_prefix"]
    parts = [
        "# Environment variables",
        NOTE,
        "What the shipped configuration reads, and the defaults of its three environments. An empty variable counts as unset."
        " With `--env-file` they may stand in a file; what is set in the environment itself wins.",
        table(["variable", "sets", *SHIPPED, "meaning"], rows),
        "## API keys",
        f"`{prefix.default}<NAME>`, or `{prefix.default}<NAME>_FILE`: {' '.join((prefix.description or '').split())}",
        "## Which configuration",
        f"`METRICS_CONFIG` names the configuration if `--config` does not: a file, or {', '.join(f'`{each}`' for each in SHIPPED)}."
        f" Without either it is `{SHIPPED[0]}`.",
    ]
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
