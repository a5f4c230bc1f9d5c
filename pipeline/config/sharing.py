"""What the components that run ask of each other and of the machine: extensions' interfaces, and ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.component import Component
from pipeline.config.check import Configured
from pipeline.config.fields import ListenerConfig
from pipeline.config.pipelines import Reference
from pipeline.config.problems import Problems, Steps, joined
from pipeline.config.source import MapNode, mark_at
from pipeline.registry import Registry

PartT = TypeVar("PartT", bound=BaseModel)

WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - addresses to compare with, not to bind


def check_extensions(
    used: Sequence[Configured], extensions: Sequence[Reference], registry: Registry, problems: Problems
) -> None:
    """Each interface that a component requires is offered by one of the enabled extensions, and by one only."""
    _check_repeats(extensions, problems)
    offers = [(one, one.found.declaration.component) for one in extensions if one.found and one.found.declaration]
    if len(offers) < len(extensions):
        return  # what is not known may offer anything
    _check_order(offers, problems)
    wanted: dict[type, None] = {}
    for component in used:
        wanted |= dict.fromkeys(component.declaration.component.uses if component.declaration else ())
        for interface in component.declaration.component.requires if component.declaration else ():
            wanted[interface] = None
            if not any(issubclass(offer, interface) for _, offer in offers):
                able = {one.type for one in registry.declarations.values() if issubclass(one.component, interface)}
                message = f"requires {interface.__name__}, which no enabled extension in service.extensions offers"
                steps: Steps = (f"{component.kind}s", component.id)
                problems.add(
                    component.mark, steps, f"{message} (known to offer it: {', '.join(sorted(able)) or 'none'})"
                )
    for interface in wanted:
        offering = {one.id: one for one, offer in offers if issubclass(offer, interface)}
        for reference in list(offering.values())[1:]:
            message = f"{reference.id!r} offers {interface.__name__}, as {next(iter(offering))!r} does (must be one)"
            problems.add(reference.mark, reference.steps, message)


def check_listeners(used: Sequence[Configured], tree: MapNode, problems: Problems) -> None:
    """No two listeners bind the same port of the same address."""
    taken: list[tuple[ListenerConfig, Steps]] = []
    for component in used:
        start: Steps = (f"{component.kind}s", component.id)
        for listener, steps in parts_of(component.config, ListenerConfig, start):
            other = next((at for earlier, at in taken if _clash(earlier, listener)), None)
            if other:
                message = f"port {listener.port} of {listener.host} is already taken by {joined(other)}"
                problems.add(mark_at(tree, (*steps, "port")), (*steps, "port"), message)
            taken.append((listener, steps))


def _check_repeats(extensions: Sequence[Reference], problems: Problems) -> None:
    seen: set[str] = set()
    for reference in extensions:
        if reference.id in seen:
            problems.add(reference.mark, reference.steps, f"names {reference.id!r} twice")
        seen.add(reference.id)


def _check_order(offers: Sequence[tuple[Reference, type[Component[Any]]]], problems: Problems) -> None:
    """Extensions start as they are listed, so one that uses another comes behind it."""
    for index, (reference, component) in enumerate(offers):
        for other, offer in offers[index + 1 :]:
            asked = (*component.requires, *component.uses)
            needed = [interface for interface in asked if issubclass(offer, interface)]
            if needed:
                message = f"{reference.id!r} uses {needed[0].__name__} (must come behind {other.id!r}, which offers it)"
                problems.add(reference.mark, reference.steps, message)


def parts_of(value: Any, part: type[PartT], steps: Steps = ()) -> Iterator[tuple[PartT, Steps]]:
    """Every part of that type in a component's options, wherever it is."""
    if isinstance(value, part):
        yield value, steps
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from parts_of(getattr(value, name), part, (*steps, name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from parts_of(item, part, (*steps, str(name)))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from parts_of(item, part, (*steps, index))


def _clash(one: ListenerConfig, other: ListenerConfig) -> bool:
    same_host = one.host == other.host or one.host in WILDCARDS or other.host in WILDCARDS
    return one.port == other.port != 0 and same_host
