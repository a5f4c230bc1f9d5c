"""Which component types there are, and which packages they come from.

pluggy's own entry-point loading stops at the first package that fails, so each entry point is loaded and registered here on
its own; what is wrong with one becomes a `BrokenPlugin` and leaves the others alone.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from pipeline import hookspecs
from pipeline.component import Declaration, Kind

if TYPE_CHECKING:
    import click

ENTRY_POINTS = "metrics_service.plugins"

BUILT_IN = (
    "plugins.receivers.http",
    "plugins.processors.auth",
    "plugins.processors.rate_limit",
    "plugins.processors.validate",
    "plugins.processors.batch",
    "plugins.exporters.sqlite",
    "plugins.exporters.debug",
    "plugins.extensions.database",
    "plugins.extensions.api_keys",
    "plugins.extensions.retention",
)


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that was left out: the package or file it comes from, and why, in one line."""

    source: str
    reason: str


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
    spec.loader.exec_module(module)
    return module


class _Loader:
    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._declarations: dict[tuple[Kind, str], Declaration] = {}
        self._sources: dict[tuple[Kind, str], str] = {}
        self._commands: list[click.Command] = []
        self._broken: list[BrokenPlugin] = []

    def try_register(self, source: str, load: Any) -> None:
        """Register what `load` returns; whatever goes wrong is the plugin's fault and stays with it."""
        try:
            self.register(source, load())
        except Exception as error:
            self._broken.append(BrokenPlugin(source, f"{type(error).__name__}: {error}".splitlines()[0]))

    def register(self, source: str, plugin: Any) -> None:
        self._manager.register(plugin, name=source)
        try:
            self._manager.check_pending()
            hooks = self._manager.subset_hook_caller
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            declared = hooks("declare_components", remove_plugins=others)()
            commands = hooks("declare_commands", remove_plugins=others)()
            for declaration in [one for several in declared for one in several]:
                self._declare(source, declaration)
            self._commands += [one for several in commands for one in several]
        except Exception:
            self._manager.unregister(plugin)
            raise

    def _declare(self, source: str, declaration: Declaration) -> None:
        name = (declaration.kind, declaration.type)
        if name in self._declarations:
            raise ValueError(
                f"declares {declaration.kind} {declaration.type!r}, which {self._sources[name]} already brings"
            )
        self._declarations[name] = declaration
        self._sources[name] = source

    def registry(self) -> Registry:
        return Registry(
            MappingProxyType(self._declarations),
            MappingProxyType(self._sources),
            tuple(self._commands),
            tuple(self._broken),
        )
