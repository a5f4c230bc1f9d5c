"""The sections of a configuration: which components it configures, and their options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.component import Declaration, Kind
from pipeline.config.explain import quoted
from pipeline.config.fields import ComponentConfig
from pipeline.config.model import ServiceSettings
from pipeline.config.options import validate
from pipeline.config.problems import Mark, Problems, Steps, known
from pipeline.config.source import MapNode, Node, ScalarNode
from pipeline.registry import Registry, contested_reason

ID = re.compile(r"(?P<type>[A-Za-z0-9_-]+)(/[A-Za-z0-9_-]+)?")
"""A component's id: `type` or `type/name`."""

SECTIONS = {f"{kind}s": kind for kind in Kind}


@dataclass(frozen=True)
class Configured:
    """A component as far as it could be read: `declaration` is None for an unknown type, `config` if an option is wrong."""

    kind: Kind
    id: str
    mark: Mark
    declaration: Declaration | None
    config: ComponentConfig | None

    @property
    def enabled(self) -> bool:
        """False only if the configuration says so."""
        return self.config is None or self.config.enabled


Components = Mapping[tuple[Kind, str], Configured]


def check_components(tree: MapNode, registry: Registry, problems: Problems) -> Components:
    """Every component that the sections configure, its options checked."""
    found = {}
    for name, section in tree.items.items():
        kind = SECTIONS.get(name)
        if kind is None:
            if name != "service":
                # An option that lost its path, as `port`, looks a bit like a section (`exporters`) and is none.
                right = known(name, [*SECTIONS, "service"], near_from=0.7)
                problems.add(section.mark, (name,), f"is not a known section {right}")
        elif isinstance(section, MapNode):
            for id_, body in section.items.items():
                found[kind, id_] = _component(kind, id_, body, registry, problems)
        elif not _failed(section):
            problems.add(section.mark, (name,), f"must be a mapping of ids to options, got {quoted(section)}")
    return found


def check_service(tree: MapNode, problems: Problems) -> ServiceSettings | None:
    """The section `service`, which may be missing here."""
    section = tree.items.get("service") or MapNode(tree.mark, {})
    if isinstance(section, MapNode):
        return validate(ServiceSettings, section, ("service",), problems)
    if not _failed(section):
        problems.add(section.mark, ("service",), f"must be a mapping, got {quoted(section)}")
    return None


def _failed(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.failed


def _component(kind: Kind, id_: str, body: Node, registry: Registry, problems: Problems) -> Configured:
    steps: Steps = (f"{kind}s", id_)
    match = ID.fullmatch(id_)
    if not match:
        message = f"must be type or type/name, of letters, digits, '_' and '-', got {id_!r}"
        problems.add(body.mark, steps, message)
        return Configured(kind, id_, body.mark, None, None)
    declaration = registry.declarations.get((kind, match["type"]))
    config = None
    if declaration is None:
        problems.add(body.mark, steps, _unknown(kind, match["type"], registry))
    elif isinstance(body, MapNode):
        config = validate(declaration.config, body, steps, problems)
    elif not _failed(body):
        problems.add(body.mark, steps, "must be a mapping of options")
    return Configured(kind, id_, body.mark, declaration, config)


def _unknown(kind: Kind, type_: str, registry: Registry) -> str:
    """What to say of a type that nobody brings: where it does exist, what it may have been, and who failed to bring it."""
    if sources := registry.contested.get((kind, type_)):
        return contested_reason(kind, type_, sources)
    elsewhere = [other for other in Kind if (other, type_) in registry.declarations]
    if elsewhere:
        return f"{type_!r} is not a type of {kind} (it belongs under {elsewhere[0]}s)"
    message = f"unknown type of {kind} {type_!r} {known(type_, registry.types(kind))}"
    broken = "; ".join(f"{plugin.source}: {plugin.reason}" for plugin in registry.broken)
    return f"{message}; these plugins could not be loaded: {broken}" if broken else message
