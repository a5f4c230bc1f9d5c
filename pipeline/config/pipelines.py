"""The pipelines as they are written, and what is left of them when what is disabled is taken out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pipeline.component import Kind
from pipeline.config.check import ID, Components, Configured
from pipeline.config.problems import Mark, Problems, Steps, known
from pipeline.config.source import ListNode, MapNode, Node, ScalarNode, mark_at
from pipeline.data import Signal

ROLES: dict[str, tuple[Kind, ...]] = {
    "receivers": (Kind.RECEIVER, Kind.CONNECTOR),
    "processors": (Kind.PROCESSOR,),
    "exporters": (Kind.EXPORTER, Kind.CONNECTOR),
    "extensions": (Kind.EXTENSION,),
}
"""The lists of ids in the section `service`, and what they may name."""


@dataclass(frozen=True)
class Reference:
    """An id in a list. `found` is None if nothing of that name is configured, which was reported."""

    id: str
    mark: Mark
    steps: Steps
    found: Configured | None

    @property
    def enabled(self) -> bool:
        """What could not be found counts as enabled, so that one mistake is reported once."""
        return self.found is None or self.found.enabled

    @property
    def is_connector(self) -> bool:
        """Whether it leads to or from another pipeline."""
        return self.found is not None and self.found.kind is Kind.CONNECTOR


@dataclass(frozen=True)
class Written:
    """One pipeline. `signal` is None for an unknown one, and `shaped` False if a part is no list; both were reported."""

    id: str
    signal: Signal | None
    mark: Mark
    steps: Steps
    receivers: tuple[Reference, ...]
    processors: tuple[Reference, ...]
    exporters: tuple[Reference, ...]
    shaped: bool

    @property
    def references(self) -> tuple[Reference, ...]:
        """All components that it names."""
        return self.receivers + self.processors + self.exporters

    def feeds(self, other: Written) -> Iterator[str]:
        """The connectors from this pipeline to the other one."""
        ends = {reference.id for reference in other.receivers if reference.is_connector}
        return (reference.id for reference in self.exporters if reference.is_connector and reference.id in ends)


def read_pipelines(tree: MapNode, components: Components, problems: Problems) -> list[Written]:
    """All pipelines, whatever of them can be read; the shape of the section was checked before."""
    steps: Steps = ("service", "pipelines")
    section = _item(_item(tree, "service"), "pipelines")
    if section is None or (isinstance(section, MapNode) and not section.items):
        problems.add(mark_at(tree, steps), steps, "must hold a pipeline")
    written = []
    for id_, body in section.items.items() if isinstance(section, MapNode) else ():
        here: Steps = (*steps, id_)
        signal = _signal(id_, body.mark, here, problems)
        _check_ends(body, here, problems)
        receivers, processors, exporters = (
            read_references(body, role, here, components, problems) for role in ("receivers", "processors", "exporters")
        )
        written.append(Written(id_, signal, body.mark, here, receivers, processors, exporters, _is_shaped(body)))
    return written


def read_references(
    node: Node | None, role: str, steps: Steps, components: Components, problems: Problems
) -> tuple[Reference, ...]:
    """The list of ids under `role`, each looked up among what is configured."""
    listed = _item(node, role)
    found: list[Reference] = []
    for index, item in enumerate(listed.items if isinstance(listed, ListNode) else ()):
        if isinstance(item, ScalarNode) and not item.failed and item.text:
            found.append(_look_up(item, role, (*steps, role, index), components, problems))
    return tuple(found)


def without_disabled(pipelines: Sequence[Written]) -> list[Written]:
    """The pipelines that run. One that is left without exporters does not, nor do the connectors that only it would hear."""
    left = [_enabled(pipeline) for pipeline in pipelines]
    while True:
        heard = {reference.id for pipeline in left for reference in pipeline.receivers if reference.is_connector}
        kept = [
            replace(
                pipeline, exporters=tuple(one for one in pipeline.exporters if not one.is_connector or one.id in heard)
            )
            for pipeline in left
        ]
        kept = [pipeline for pipeline in kept if pipeline.exporters]
        if kept == left:
            fed = {reference.id for pipeline in kept for reference in pipeline.exporters}
            return [_fed(pipeline, fed) for pipeline in kept]
        left = kept


def upstream_first(pipelines: Sequence[Written]) -> list[Written]:
    """The same pipelines, each behind those that feed it; otherwise as they were written. There must be no cycle."""
    ordered: list[Written] = []
    waiting = list(pipelines)
    while waiting:
        ready = next(one for one in waiting if not any(any(other.feeds(one)) for other in waiting))
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _signal(id_: str, mark: Mark, steps: Steps, problems: Problems) -> Signal | None:
    match = ID.fullmatch(id_)
    if match and match["type"] in list(Signal):
        return Signal(match["type"])
    signals = " or ".join(Signal)
    problems.add(mark, steps, f"must be named for its signal, {signals}, or signal/name, got {id_!r}")
    return None


def _is_shaped(body: Node) -> bool:
    return isinstance(body, MapNode) and all(
        isinstance(part, ListNode) for role, part in body.items.items() if role in ROLES
    )


def _check_ends(body: Node, steps: Steps, problems: Problems) -> None:
    for role in ("receivers", "exporters") if isinstance(body, MapNode) else ():
        listed = _item(body, role)
        if listed is None or (isinstance(listed, ListNode) and not listed.items):
            mark = listed.mark if listed else body.mark
            problems.add(mark, (*steps, role), f"must name at least one {role[:-1]} or connector")


def _look_up(item: ScalarNode, role: str, steps: Steps, components: Components, problems: Problems) -> Reference:
    kinds, id_ = ROLES[role], item.text
    found = [components[kind, id_] for kind in kinds if (kind, id_) in components]
    if not found:
        names = [name for kind, name in components if kind in kinds]
        message = f"references {kinds[0]} {id_!r}, which is not configured {known(id_, names, 'configured')}"
        problems.add(item.mark, steps, message)
    elif len(found) > 1:
        problems.add(item.mark, steps, f"{id_!r} is both {' and '.join(f'a {one.kind}' for one in found)} (rename one)")
    return Reference(id_, item.mark, steps, found[0] if found else None)


def _enabled(pipeline: Written) -> Written:
    return replace(
        pipeline,
        receivers=tuple(one for one in pipeline.receivers if one.enabled),
        processors=tuple(one for one in pipeline.processors if one.enabled),
        exporters=tuple(one for one in pipeline.exporters if one.enabled),
    )


def _fed(pipeline: Written, fed: set[str]) -> Written:
    return replace(
        pipeline, receivers=tuple(one for one in pipeline.receivers if not one.is_connector or one.id in fed)
    )


def _item(node: Node | None, key: str) -> Node | None:
    return node.items.get(key) if isinstance(node, MapNode) else None
