"""Which component types there are, and which packages they come from.

pluggy's own entry-point loading stops at the first package that fails, so each entry point is loaded and registered here on
its own; what is wrong with one becomes a `BrokenPlugin` and leaves the others alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from pipeline import hookspecs
from pipeline.component import Component, Connector, Declaration, Exporter, Extension, Kind, Processor, Receiver
from pipeline.config.fields import ComponentConfig
from pipeline.data import Signal
from pipeline.errors import USER_MISTAKE, StartError, in_a_line

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


_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BASES: dict[Any, Kind] = {  # a connector is an exporter too, so it comes first
    Connector: Kind.CONNECTOR,
    Receiver: Kind.RECEIVER,
    Processor: Kind.PROCESSOR,
    Exporter: Kind.EXPORTER,
    Extension: Kind.EXTENSION,
}
_AWAITED = ("start", "stop", "reload", "admit", "process", "decode", "export", "position", "flush")
"""Methods of components that are coroutines."""
_NOT_AWAITED = ("routes", "instruments", "findings", "saved", "journal_settings")
"""Methods of components that must return their result, not a coroutine."""


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
    """The component types that can be used. `sources` names for each of them the package that it comes from.

    A type that several packages declare is not among them: `contested` names these packages.
    """

    declarations: Mapping[tuple[Kind, str], Declaration]
    sources: Mapping[tuple[Kind, str], str]
    commands: tuple[click.Command, ...]
    broken: tuple[BrokenPlugin, ...]
    contested: Mapping[tuple[Kind, str], tuple[str, ...]] = field(default_factory=dict)
    command_sources: Mapping[str, str] = field(default_factory=dict)
    """The package that each command comes from, by the name of the command."""

    def is_built_in(self, declaration: Declaration) -> bool:
        """Whether the service itself brings this type."""
        return self.sources.get((declaration.kind, declaration.type)) in BUILT_IN

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
        self._declared: dict[tuple[Kind, str], dict[str, Declaration]] = {}
        """By type, then by source."""
        self._commands: dict[str, dict[str, click.Command]] = {}
        """By name, then by source."""
        self.broken: list[BrokenPlugin] = []

    def try_register(self, source: str, load: Any) -> None:
        """Register what `load` returns; whatever goes wrong is the plugin's fault and stays with it."""
        try:
            self.register(source, load())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.broken.append(BrokenPlugin(source, in_a_line(error)))

    def register(self, source: str, plugin: Any) -> None:
        try:
            _check_version(plugin)
            self._manager.register(plugin, name=source)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise ValueError("has no hooks (mark declare_components with @hookimpl)")
            self._take(
                source,
                self._ask(plugin, "declare_components"),
                _checked_commands(self._ask(plugin, "declare_commands")),
            )
        except BaseException:
            if self._manager.get_plugin(source) is plugin:
                self._manager.unregister(plugin)
            raise

    def _ask(self, plugin: Any, hook: str) -> list[Any]:
        """The results of one plugin's hook; empty if it does not have the hook."""
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
        returned = caller()
        for each in returned:
            if isinstance(each, Coroutine):
                each.close()
                raise TypeError(f"{hook} is async (hooks are plain functions)")
        # pluggy drops None: a hook without `return` would look like one that declares nothing.
        if len(returned) < len([each for each in caller.get_hookimpls() if not (each.hookwrapper or each.wrapper)]):
            raise TypeError(f"{hook} returned None (must return a sequence)")
        for each in returned:
            if isinstance(each, str | Mapping) or not isinstance(each, Iterable):
                raise TypeError(f"{hook} returned {in_a_line(each)} (must return a sequence)")
        return list(chain(*returned))

    def _take(self, source: str, declarations: list[Declaration], commands: list[click.Command]) -> None:
        """All that one plugin brings, or nothing."""
        for one in declarations:
            _check(one)
        brought = {(one.kind, one.type): one for one in declarations}
        if len(brought) < len(declarations):
            raise ValueError("declares a component type twice")
        named = {one.name or "": one for one in commands}
        if len(named) < len(commands):
            raise ValueError("declares a command twice")
        for key, one in brought.items():
            self._declared.setdefault(key, {})[source] = one
        for name, command in named.items():
            self._commands.setdefault(name, {})[source] = command

    def registry(self) -> Registry:
        """The registry of all plugins. A name that two of them declare is used for neither, since the intended one is unknown."""
        clear = {key: by for key, by in self._declared.items() if len(by) == 1}
        contested = {key: tuple(by) for key, by in self._declared.items() if len(by) > 1}
        for (kind, type_), sources in contested.items():
            self.broken.append(BrokenPlugin(sources[-1], f"{kind} {type_!r} is declared by {_and(sources)}"))
        for name, by in self._commands.items():
            if len(by) > 1:
                self.broken.append(BrokenPlugin([*by][-1], f"the command {name!r} is declared by {_and([*by])}"))
        return Registry(
            MappingProxyType({key: one for key, by in clear.items() for one in by.values()}),
            MappingProxyType({key: source for key, by in clear.items() for source in by}),
            tuple(
                next(iter(by.values())) if len(by) == 1 else _contested_command(name, [*by])
                for name, by in self._commands.items()
            ),
            tuple(self.broken),
            MappingProxyType(contested),
            MappingProxyType({name: _and([*by]) for name, by in self._commands.items()}),
        )


def _and(sources: Sequence[str]) -> str:
    return f"{', '.join(sources[:-1])} and {sources[-1]}" if len(sources) > 1 else sources[0]


def contested_reason(kind: Kind, type_: str, sources: Sequence[str]) -> str:
    """What is wrong with a configuration that uses a type that these packages declare."""
    return f"the type {type_!r} of {kind} is declared by {_and(sources)} (uninstall all but one)"


def _contested_command(name: str, sources: Sequence[str]) -> click.Command:
    """A command that only says why it does nothing."""
    import click

    def refuse() -> None:
        raise StartError(f"the command {name!r} is declared by {_and(sources)} (uninstall all but one)", USER_MISTAKE)

    return click.Command(
        name,
        callback=refuse,
        help=f"Unavailable: declared by {_and(sources)}.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _checked_commands(commands: list[Any]) -> list[click.Command]:
    if not commands:
        return []
    import click

    one: Any
    for one in commands:
        if not isinstance(one, click.Command) or not one.name:
            raise TypeError(f"declares the command {in_a_line(one)} (must be a click.Command with a name)")
    return commands


def _check(one: Any) -> None:
    """Raise `TypeError` or `ValueError` for a declaration that cannot be used."""
    if not isinstance(one, Declaration):
        raise TypeError(f"declares {in_a_line(one)} (must be a Declaration)")
    type_: Any = one.type
    if not isinstance(type_, str) or not _NAME.fullmatch(type_):
        raise ValueError(f"declares the type {in_a_line(type_)} (must be letters, digits, '_' and '-')")
    who = f"declares {_kind_of(type_, one.component)} {type_!r}"
    _check_class(who, one.component)
    config: Any = one.config
    if not isinstance(config, type) or not issubclass(config, ComponentConfig):
        raise TypeError(f"{who} with the options {in_a_line(config)} (must be a subclass of ComponentConfig)")
    for name in ("takes", "gives"):
        signals: Any = getattr(one, name)
        if not isinstance(signals, Set) or not all(isinstance(each, Signal) for each in signals):
            raise TypeError(f"{who} with {name}={in_a_line(signals)} (must be a frozenset of Signal)")


def _kind_of(type_: str, component: Any) -> Kind:
    """The kind of a class. Raises `TypeError` for what is not a component of one kind."""
    if not isinstance(component, type) or not issubclass(component, Component):
        raise TypeError(f"declares {type_!r} with the class {in_a_line(component)} (must be a subclass of Component)")
    kinds = [kind for base, kind in _BASES.items() if issubclass(component, base)]
    if Kind.CONNECTOR in kinds:
        kinds.remove(Kind.EXPORTER)
    if len(kinds) != 1:
        raise TypeError(
            f"declares {type_!r} with the class {component.__name__} (must be a subclass of Receiver, Processor, Exporter, "
            "Connector or Extension, and of one of them only)"
        )
    return kinds[0]


def _check_class(who: str, component: type[Component[Any]]) -> None:
    kind: Any = component.kind
    if kind is not _kind_of("", component):
        raise TypeError(f"{who} with a class that sets kind to {in_a_line(kind)} (must not set it)")
    if inspect.isabstract(component):
        missing = ", ".join(sorted(getattr(component, "__abstractmethods__", ())))
        raise TypeError(f"{who} with the class {component.__name__}, which does not implement {missing}")
    for name in ("requires", "uses"):
        asked: Any = getattr(component, name)
        if not isinstance(asked, tuple) or not all(isinstance(each, type) for each in asked):
            raise TypeError(f"{who} with {name} = {in_a_line(asked)} (must be a tuple of interfaces)")
    for name in (*_AWAITED, *_NOT_AWAITED):
        method = getattr(component, name, len)  # one that it does not have is right
        if not callable(method):
            raise TypeError(f"{who} with {name} = {in_a_line(method)} (must be a method)")
        if name in _NOT_AWAITED and (inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)):
            raise TypeError(f"{who} with async {name} (must not be async)")
