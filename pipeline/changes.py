"""What is different between the configuration that runs and another: what stays, and what cannot change while the service runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from pipeline.component import Component, Exporter, Kind, Processor
from pipeline.config.fields import ListenerConfig, TLSConfig
from pipeline.config.model import ComponentSpec, Configuration, PipelineSpec
from pipeline.config.problems import Problems, Steps
from pipeline.config.sharing import parts_of
from pipeline.config.source import mark_at
from pipeline.graph import Graph, Key

RESTART = "while the service runs (restart it)"
Certificates = Mapping[Key, frozenset[tuple[Path, str]]]
"""What the certificates' and keys' files hold that a component speaks TLS with as a client, as digests, by component."""


def specs(configuration: Configuration) -> dict[Key, ComponentSpec]:
    """Every component that runs."""
    return {(one.kind, one.id): one for one in (*configuration.extensions, *configuration.components.values())}


def changes_in_place(component: type[Component[Any]]) -> bool:
    """Whether its class takes another configuration while it runs."""
    return component.reload is not Component.reload


def read_certificates(configuration: Configuration) -> Certificates:
    """The files as they are now. Those of listeners are the listeners' affair."""
    return {key: frozenset(_files(spec)) for key, spec in specs(configuration).items()}


def _files(spec: ComponentSpec) -> Iterator[tuple[Path, str]]:
    of_listeners = [listener.tls for listener, _ in parts_of(spec.config, ListenerConfig)]
    for tls, _ in parts_of(spec.config, TLSConfig):
        for path in () if any(tls is other for other in of_listeners) else tls.model_dump().values():
            if isinstance(path, Path):
                yield path, _digest(path)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # whoever uses it says so
        return ""


def unchanged(old: Configuration, new: Configuration, before: Certificates, now: Certificates) -> set[Key]:
    """The components that stay as they are, or change in place."""
    former = specs(old)
    return {
        key
        for key, spec in specs(new).items()
        if key in former
        and (
            changes_in_place(spec.declaration.component)
            or (spec.config == former[key].config and before.get(key) == now.get(key))
        )
    }


class Restarts:
    """Collects what of a new configuration needs a restart. `listening` are the components that have a listener now."""

    def __init__(self, old: Configuration, new: Configuration, listening: Set[Key]) -> None:
        self.problems = Problems()
        self._old = old
        self._new = new
        self._listening = listening

    def look(self, kept: Set[Key]) -> None:
        """Look through everything but the journals."""
        if self._old.settings.name != self._new.settings.name:
            self._add(("service", "name"), "cannot change")
        former, coming = specs(self._old), specs(self._new)
        for key, spec in coming.items():
            if key in former:
                self._look_at(former[key], spec, kept)
        self._look_at_pipelines(kept)

    def _look_at(self, old: ComponentSpec, new: ComponentSpec, kept: Set[Key]) -> None:
        key, component = (new.kind, new.id), new.declaration.component
        steps: Steps = (f"{new.kind}s", new.id)
        if key in self._listening:
            self._look_at_listeners(old, new, steps)
        if key in kept:
            for interface in (*component.requires, *component.uses):
                if _offering(self._old, interface) != _offering(self._new, interface):
                    self._add(steps, f"cannot get its {interface.__name__} from another extension")
        elif key in self._listening or new.kind is Kind.EXTENSION or _keeps_position(new):
            names = [name for name in type(new.config).model_fields if _differ(old, new, name)]
            for name in names:
                self._add((*steps, name), "cannot change")
            if not names:
                self._add(steps, "cannot use other certificates")

    def _look_at_listeners(self, old: ComponentSpec, new: ComponentSpec, steps: Steps) -> None:
        former = {at: listener for listener, at in parts_of(old.config, ListenerConfig)}
        for listener, at in parts_of(new.config, ListenerConfig):
            if (before := former.get(at)) is None:
                continue
            for name in ("host", "port", "server"):
                if (now := getattr(listener, name)) != (then := getattr(before, name)):
                    self._add((*steps, *at, name), f"cannot change from {then} to {now}")
            if (listener.tls.certificate is None) != (before.tls.certificate is None):
                self._add((*steps, *at, "tls"), "cannot be turned on or off")

    def _look_at_pipelines(self, kept: Set[Key]) -> None:
        former = {pipeline.id: pipeline for pipeline in self._old.pipelines}
        fed = {source: one.id for one in self._old.pipelines for source in one.receivers}
        for pipeline in self._new.pipelines:
            steps: Steps = ("service", "pipelines", pipeline.id)
            if pipeline.id in former and self._asks(self._old, former[pipeline.id]) != self._asks(self._new, pipeline):
                self._add((*steps, "processors"), "cannot begin or cease to ask for a key")
            for source in pipeline.receivers:
                if fed.get(source, pipeline.id) != pipeline.id:
                    self._add((*steps, "receivers"), f"cannot take {source!r} from {fed[source]!r}")
            for id in pipeline.exporters if pipeline.id in former else ():
                if id not in former[pipeline.id].exporters and _keeps_position(self._exporter(id)):
                    self._add((*steps, "exporters"), f"cannot have {id!r} as well, which keeps its position itself,")

    def _asks(self, configuration: Configuration, pipeline: PipelineSpec) -> bool:
        """Which routes there are depends on it."""
        processors = (configuration.components[Kind.PROCESSOR, id].declaration.component for id in pipeline.processors)
        return any(issubclass(each, Processor) and each.authenticates for each in processors)

    def _exporter(self, id: str) -> ComponentSpec:
        components = self._new.components
        return components.get((Kind.EXPORTER, id)) or components[Kind.CONNECTOR, id]

    def look_at_journals(self, old: Graph, new: Graph) -> None:
        """Look at what the buffers of both say."""
        former = {pipeline.id: pipeline.settings for pipeline in old.pipelines}
        for pipeline in new.pipelines:
            buffer, before = pipeline.processors[-1], former.get(pipeline.id, pipeline.settings)
            for name in ("folder", "durability"):
                if (now := getattr(pipeline.settings, name)) != (then := getattr(before, name)):
                    self._add(("processors", buffer.id, name), f"cannot change from {then} to {now}")

    def _add(self, steps: Steps, message: str) -> None:
        self.problems.add(mark_at(self._new.tree, steps), steps, f"{message} {RESTART}")


def _offering(configuration: Configuration, interface: type) -> str | None:
    offering = [one.id for one in configuration.extensions if issubclass(one.declaration.component, interface)]
    return offering[0] if offering else None


def _keeps_position(spec: ComponentSpec) -> bool:
    component = spec.declaration.component
    return issubclass(component, Exporter) and component.keeps_position


def _differ(old: ComponentSpec, new: ComponentSpec, name: str) -> bool:
    return bool(getattr(old.config, name) != getattr(new.config, name))
