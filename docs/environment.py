"""The page of environment variables: what the shipped configuration reads, from its own files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from docs.markdown import NOTE, table
from docs.options import options, parser, shown
from pipeline.config.check import SECTIONS
from pipeline.config.fields import ComponentConfig
from pipeline.config.files import SHIPPED, shipped_folder
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration, ServiceSettings
from pipeline.registry import Registry, load_registry
from plugins.extensions.api_keys.extension import ApiKeysConfig

Steps = tuple[str, ...]


def _shipped_texts() -> Iterator[tuple[Steps, str]]:
    for name in ("base", *SHIPPED):
        yield from _texts(yaml.safe_load((shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8")), ())


def variables() -> dict[str, list[Steps]]:
    """The options that each variable in the shipped files sets."""
    found: dict[str, list[Steps]] = {}
    for steps, text in _shipped_texts():
        for variable in re.findall(r"\$\{env:(\w+)", text):
            if steps not in (known := found.setdefault(variable, [])):
                known.append(steps)
    return found


def _in_milliseconds() -> set[str]:
    """The variables to whose value the shipped files add the unit."""
    return {variable for _, text in _shipped_texts() for variable in re.findall(r"\$\{env:(\w+)\}ms", text)}


def _texts(node: Any, steps: Steps) -> Iterator[tuple[Steps, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, (*steps, key))
    elif isinstance(node, str):
        yield steps, node


def _field(registry: Registry, steps: Steps) -> FieldInfo:
    section, *way = steps
    if section == "service":
        fields = dict(options(ServiceSettings))
    else:
        config = registry.declarations[SECTIONS[section], way.pop(0)].config
        fields = {**ComponentConfig.model_fields, **dict(options(config))}
    return fields[".".join(way)]


def _value(configuration: Configuration, steps: Steps) -> Any:
    section, *way = steps
    value: Any = configuration.settings
    if section != "service":
        value = configuration.configured[SECTIONS[section], way.pop(0)].config
    for step in way:
        value = getattr(value, step)
    return value


def _row(variable: str, sets: list[Steps], loaded: list[Configuration], field: FieldInfo) -> list[str]:
    meaning = field.description or ""
    values = [[_value(each, steps) for steps in sets] for each in loaded]
    if variable in _in_milliseconds():
        assert "in seconds" in meaning, f"{variable}: the description of {sets[0]} names no unit"
        meaning = meaning.replace("in seconds", "in milliseconds, as a number without a unit")
        texts = [{f"{1000 * value:g}" for value in each} for each in values]
    else:
        # `{}` is YAML; in a variable, an empty mapping is an empty text.
        texts = [{shown(value, parser(field)) if value != {} else "" for value in each} for each in values]
    defaults = [" or ".join(f"`{text}`" if text else "none" for text in sorted(each)) for each in texts]
    return [f"`{variable}`", ", ".join(f"`{'.'.join(steps)}`" for steps in sets), *defaults, meaning]


def environment() -> str:
    """Every variable that the shipped configuration reads, with its default in each environment."""
    registry = load_registry(installed=False)
    loaded = [load_configuration([name], [], {}, registry) for name in SHIPPED]
    rows = [_row(variable, sets, loaded, _field(registry, sets[0])) for variable, sets in variables().items()]
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
