"""From files, overrides and an environment to a checked configuration, or to all that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType

from pipeline.component import Kind
from pipeline.config.check import Components, Configured, check_components, check_service
from pipeline.config.digest import digest
from pipeline.config.env_file import read_env_file
from pipeline.config.files import FileReader, asked_files, shipped_folder
from pipeline.config.merge import merge, parse_overrides
from pipeline.config.model import ComponentSpec, Configuration, PipelineSpec, ServiceSettings
from pipeline.config.pipelines import (
    Reference,
    Written,
    read_pipelines,
    read_references,
    upstream_first,
    without_disabled,
)
from pipeline.config.problems import Problems
from pipeline.config.sharing import check_extensions, check_listeners
from pipeline.config.source import MapNode, mark_at
from pipeline.config.substitution import substitute_tree
from pipeline.config.wiring import check_pipelines
from pipeline.registry import Registry

__all__ = ["load_configuration", "read_env_file", "shipped_folder"]


def load_configuration(
    files: Sequence[str], overrides: Sequence[str], environ: Mapping[str, str], registry: Registry
) -> Configuration:
    """The configuration that `files`, merged in this order, and `path=value` overrides make in this environment.

    Without files it is the one that METRICS_CONFIG names, else `development`. A file is a path, or `development`, `staging`
    or `production`. Reads nothing but these files, those they extend and those they name by `${file:}`, and writes nothing.
    Raises `ConfigError` with every problem.
    """
    problems = Problems()
    reader = FileReader(problems)
    trees = [reader.read(name, asked) for name, asked in asked_files(files, environ)]
    trees += parse_overrides(overrides, problems)
    if reader.failed:  # what is checked without that file would be nonsense
        problems.raise_any(reader.names)
    tree = substitute_tree(reduce(merge, trees), environ, problems)
    checked = _check(tree, registry, problems)
    problems.raise_any(reader.names)
    return _configuration(checked, tree, environ, registry)


@dataclass(frozen=True)
class _Checked:
    """What could be read, right or wrong; `running` and `extensions` are without what is disabled."""

    components: Components
    settings: ServiceSettings | None
    extensions: tuple[Reference, ...]
    running: list[Written]

    def used(self) -> list[Configured]:
        """The components that run, each once: extensions first, then in the order of the pipelines."""
        references = (*self.extensions, *(one for pipeline in self.running for one in pipeline.references))
        return list({(one.found.kind, one.id): one.found for one in references if one.found}.values())


def _check(tree: MapNode, registry: Registry, problems: Problems) -> _Checked:
    components = check_components(tree, registry, problems)
    settings = check_service(tree, problems)
    pipelines = read_pipelines(tree, components, problems)
    check_pipelines(pipelines, registry, problems)
    running = without_disabled(pipelines)
    if pipelines and not running and all(one.exporters for one in pipelines):
        steps = ("service", "pipelines")
        problems.add(mark_at(tree, steps), steps, "nothing is left to run: every exporter is disabled")
    extensions = read_references(tree.items.get("service"), "extensions", ("service",), components, problems)
    checked = _Checked(components, settings, tuple(one for one in extensions if one.enabled), running)
    check_extensions(checked.used(), checked.extensions, registry, problems)
    check_listeners(checked.used(), tree, problems)
    return checked


def _configuration(checked: _Checked, tree: MapNode, environ: Mapping[str, str], registry: Registry) -> Configuration:
    """The result, once nothing is wrong and all of it is there."""
    assert checked.settings is not None
    configured = {key: _spec(component, registry) for key, component in checked.components.items()}
    used = [configured[one.kind, one.id] for one in checked.used()]
    extensions = tuple(one for one in used if one.kind is Kind.EXTENSION)
    pipelines = tuple(_pipeline(one) for one in upstream_first(checked.running))
    return Configuration(
        extensions=extensions,
        components=MappingProxyType({(one.kind, one.id): one for one in used if one.kind is not Kind.EXTENSION}),
        pipelines=pipelines,
        settings=checked.settings,
        digest=digest(used, pipelines, checked.settings),
        configured=MappingProxyType(configured),
        tree=tree,
        environ=environ,
        broken=registry.broken,
    )


def _spec(component: Configured, registry: Registry) -> ComponentSpec:
    assert component.declaration is not None
    assert component.config is not None
    declaration = component.declaration
    third_party = not registry.is_built_in(declaration)
    return ComponentSpec(component.kind, component.id, declaration, component.config, third_party)


def _pipeline(written: Written) -> PipelineSpec:
    assert written.signal is not None
    receivers, processors, exporters = (
        tuple(one.id for one in several) for several in (written.receivers, written.processors, written.exporters)
    )
    return PipelineSpec(written.id, written.signal, receivers, processors, exporters)
