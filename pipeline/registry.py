"""Which component types there are, and which packages they come from.

pluggy's own entry-point loading stops at the first package that fails, so each entry point is loaded and registered here on
its own; what is wrong with one becomes a `BrokenPlugin` and leaves the others alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from pipeline import hookspecs
from pipeline.component import Declaration, Kind

if TYPE_CHECKING:
    import click

ENTRY_POINTS = "metrics_service.plugins"

VERSION = "METRICS_SERVICE_API"
"""Where a plugin says which version of the API it was made for."""

BUILT_IN = (
    "plugins.receivers.http",
    "plugins.receivers.internal_telemetry",
    "plugins.processors.auth",
    "plugins.processors.rate_limit",
    "plugins.processors.validate",
    "plugins.processors.attributes",
    "plugins.processors.filter",
    "plugins.processors.sample",
    "plugins.processors.batch",
    "plugins.exporters.sqlite",
    "plugins.exporters.prometheus",
    "plugins.exporters.otlp",
    "plugins.exporters.debug",
    "plugins.connectors.series",
    "plugins.extensions.database",
    "plugins.extensions.api_keys",
    "plugins.extensions.retention",
)


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was left out: the package or file it comes from, and why, in one line."""

    source: str
    reason: str

    @property
    def package(self) -> str:
        """The name of the package, or of the file, alone."""
        package, entry_point, _ = self.source.rpartition(" (")
        return package if entry_point and self.source.endswith(")") else Path(self.source).name


def states(broken: Iterable[BrokenPlugin]) -> dict[str, str]:
    """What the service's health says of plugins that were left out."""
    reasons: dict[str, list[str]] = {}
    for one in broken:
        reasons.setdefault(one.package, []).append(one.reason)
    return {f"plugin/{package}": f"left out: {'; '.join(why)}" for package, why in reasons.items()}


@dataclass(frozen=True)
class Registry:
    """The component types that can be used. `sources` names for each of them the package that it comes from."""

    declarations: Mapping[tuple[Kind, str], Declaration]
    sources: Mapping[tuple[Kind, str], str]
    commands: tuple[click.Command, ...]
    broken: tuple[BrokenPlugin, ...]

    def types(self, kind: Kind) -> list[str]:
        """The names of all types of one kind, sorted."""
        return sorted(type_ for kind_, type_ in self.declarations if kind_ is kind)


def load_registry(plugins_dir: Path | None = None, *, installed: bool = True, extra: Iterable[Any] = ()) -> Registry:
    """The built-in plugins, those of installed packages, the loose files in `plugins_dir`, and the plugin objects in `extra`.

    Each call makes a fresh plugin manager, so nothing that one caller loads is seen by another.
    """
    loader = _Loader()
    for name in BUILT_IN:
        loader.register(name, importlib.import_module(name))
    for source, load in _found(plugins_dir, installed=installed):
        loader.try_register(source, load)
    if plugins_dir is not None and not plugins_dir.is_dir():
        loader.broken.append(BrokenPlugin(str(plugins_dir), "is not a folder"))
    for plugin in extra:
        loader.register(getattr(plugin, "__name__", type(plugin).__name__), plugin)
    return loader.registry()


def _found(plugins_dir: Path | None, *, installed: bool) -> Iterator[tuple[str, Any]]:
    if installed:
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
            package = point.dist.name if point.dist else point.value
            yield f"{package} ({point.value})", point.load
    if plugins_dir is not None:
        for path in sorted(plugins_dir.glob("*.py")):
            yield str(path), lambda path=path: _load_file(path)


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"metrics_service_loose_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic and dataclasses look up what annotations name
    spec.loader.exec_module(module)
    return module


def _check_version(plugin: Any) -> None:
    """First of all, since to a plugin of another version everything else may look wrong too."""
    made_for = getattr(plugin, VERSION, 1)
    if made_for != hookspecs.API_VERSION:
        is_here = f"this service has version {hookspecs.API_VERSION}"
        raise ValueError(f"was made for version {made_for!r} of the plugin API ({VERSION}), {is_here}")


class _Loader:
    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._declarations: dict[tuple[Kind, str], Declaration] = {}
        self._sources: dict[tuple[Kind, str], str] = {}
        self._commands: list[click.Command] = []
        self.broken: list[BrokenPlugin] = []

    def try_register(self, source: str, load: Any) -> None:
        """Register what `load` returns; whatever goes wrong is the plugin's fault and stays with it."""
        try:
            self.register(source, load())
        except (Exception, SystemExit) as error:
            self.broken.append(BrokenPlugin(source, " ".join(f"{type(error).__name__}: {error}".split())))

    def register(self, source: str, plugin: Any) -> None:
        try:
            _check_version(plugin)
            self._manager.register(plugin, name=source)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise ValueError("has no hooks (mark declare_components with @hookimpl)")
            hooks = self._manager.subset_hook_caller
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            declared = hooks("declare_components", remove_plugins=others)()
            commands = hooks("declare_commands", remove_plugins=others)()
            self._take(source, list(chain(*declared)), list(chain(*commands)))
        except BaseException:
            if self._manager.get_plugin(source) is plugin:
                self._manager.unregister(plugin)
            raise

    def _take(self, source: str, declarations: list[Declaration], commands: list[click.Command]) -> None:
        """All that one plugin brings, or nothing."""
        brought = {(one.kind, one.type): one for one in declarations}
        if len(brought) < len(declarations):
            raise ValueError("declares a component type twice")
        for kind, type_ in brought.keys() & self._declarations.keys():
            raise ValueError(f"declares {kind} {type_!r}, which {self._sources[kind, type_]} already brings")
        for name in {one.name for one in commands} & {one.name for one in self._commands}:
            raise ValueError(f"declares the command {name!r}, which another plugin already brings")
        self._declarations.update(brought)
        self._sources.update(dict.fromkeys(brought, source))
        self._commands += commands

    def registry(self) -> Registry:
        return Registry(
            MappingProxyType(self._declarations),
            MappingProxyType(self._sources),
            tuple(self._commands),
            tuple(self.broken),
        )
