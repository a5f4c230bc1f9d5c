"""Plugins of other people: found by real entry points and in a folder, and left out one by one if they are broken."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline import API_VERSION, Context, Kind, Processor, StartError
from pipeline.config.load import load_configuration
from pipeline.errors import ConfigError
from pipeline.registry import BUILT_IN, ENTRY_POINTS, BrokenPlugin, Registry, load_registry, states
from pipeline.testing import NopHost
from tests.running import environment

GOOD = '''
from __future__ import annotations

from dataclasses import dataclass

import click
from pipeline import ComponentConfig, Context, Declaration, Duration, Processor, Signal, hookimpl


@dataclass
class Seen:
    requests: int = 0


class Config(ComponentConfig):
    """Options whose annotations are names of this module."""

    pause: Duration = 1
    seen: Seen = Seen()


class Counting(Processor[Config]):
    """Counts."""

    async def admit(self, context: Context) -> None:
        self.config.seen.requests += 1


@hookimpl
def declare_components():
    return [Declaration("NAME", Counting, Config, takes=frozenset(Signal))]


@hookimpl
def declare_commands():
    return [click.Command("NAME-report")]
'''


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` for packages; what they import is forgotten at the end."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(site: Path, package: str, source: str, *, entry_points: str | None = None) -> str:
    """Install a package of one module, as pip would leave it. Gives the source under which its plugin is known."""
    module = package.replace("-", "_")
    (site / f"{module}.py").write_text(source)
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points or f"[{ENTRY_POINTS}]\n{package} = {module}\n")
    importlib.invalidate_caches()
    return f"{package} ({module})"


def test_the_built_in_plugins_load_and_say_where_they_come_from() -> None:
    registry = load_registry(installed=False)
    assert registry.broken == ()
    assert set(registry.sources.values()) == set(BUILT_IN)
    assert registry.sources[Kind.PROCESSOR, "validate"] == "plugins.processors.validate"
    assert {"auth", "batch", "rate_limit", "validate"} <= set(registry.types(Kind.PROCESSOR))


def test_every_loading_starts_afresh() -> None:
    one, other = load_registry(installed=False), load_registry(installed=False)
    assert one.declarations == other.declarations
    assert len(one.commands) == len(other.commands) == len({command.name for command in one.commands})


def test_an_installed_package_brings_its_components_and_commands(site: Path) -> None:
    source = install(site, "acme-counting", GOOD.replace("NAME", "counting"))
    registry = load_registry()
    assert registry.broken == ()
    assert registry.sources[Kind.PROCESSOR, "counting"] == source
    assert "counting-report" in [command.name for command in registry.commands]
    check_it_works(registry, "counting")


def check_it_works(registry: Registry, type_: str) -> None:
    """Configure the type, construct it and use it, as the engine would."""
    declaration = registry.declarations[Kind.PROCESSOR, type_]
    config = declaration.config.model_validate({"pause": "5m"})
    processor = declaration.component(type_, config, NopHost())
    assert isinstance(processor, Processor)
    asyncio.run(processor.admit(Context()))
    assert config.model_dump()["pause"] == 300


def test_installed_packages_are_left_alone_when_they_are_not_asked_for(site: Path) -> None:
    install(site, "acme-counting", GOOD.replace("NAME", "counting"))
    assert (Kind.PROCESSOR, "counting") not in load_registry(installed=False).declarations


def declaring(declaration: str) -> str:
    """A plugin that declares that instead."""
    good = 'Declaration("NAME", Counting, Config, takes=frozenset(Signal))'
    return GOOD.replace(good, declaration).replace("import click\n", "import click\nimport pipeline\n")


BROKEN = {
    "fails to import": ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    "cannot be parsed": ("def declare_components(:", "SyntaxError: invalid syntax (acme_broken.py, line 1)"),
    "ends the process": ("raise SystemExit('no licence')", "SystemExit: no licence"),
    "misspells a hook": (
        GOOD.replace("def declare_components", "def declare_component"),
        "PluginValidationError: unknown hook 'declare_component' in plugin",
    ),
    "asks a hook for more": (
        GOOD.replace("def declare_components()", "def declare_components(host)"),
        "PluginValidationError: Plugin 'acme-broken (acme_broken)' for hook 'declare_components' hookimpl definition:"
        " declare_components(host) Argument(s) {'host'} are declared",
    ),
    "forgets the marks": (
        GOOD.replace("@hookimpl", ""),
        "ValueError: has no hooks (mark declare_components with @hookimpl)",
    ),
    "fails in a hook": (
        GOOD.replace("    return [Decl", "    1 / 0; return [Decl"),
        "ZeroDivisionError: division by zero",
    ),
    "declares something else": (
        declaring("len"),
        "TypeError: declares <built-in function len> (must be a Declaration)",
    ),
    "declares nothing by mistake": (
        GOOD.replace("return [Decl", "[Decl"),
        "TypeError: declare_components returned None (must return a sequence)",
    ),
    "declares a mapping": (
        GOOD.replace("return [Decl", "return {} and [Decl"),
        "TypeError: declare_components returned {} (must return a sequence)",
    ),
    "has an async hook": (
        GOOD.replace("def declare_components", "async def declare_components"),
        "TypeError: declare_components is async (hooks are plain functions)",
    ),
    "raises what has no text": (
        "class Bad(Exception):\n    def __str__(self): raise SystemExit\nraise Bad",
        "Bad: <a Bad that cannot be shown>",
    ),
    "raises what is huge": ("raise ValueError('x' * 1_000_000)", f"ValueError: {'x' * 1000}… (1000000 characters)"),
    "cancels": ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
    "raises a group": (
        "raise BaseExceptionGroup('several', [SystemExit(1)])",
        "BaseExceptionGroup: several (1 sub-exception)",
    ),
    "names a type with a space": (
        declaring('Declaration("a b", Counting, Config)'),
        "ValueError: declares the type 'a b' (must be letters, digits, '_' and '-')",
    ),
    "names no type": (
        declaring("Declaration(None, Counting, Config)"),
        "ValueError: declares the type None (must be letters, digits, '_' and '-')",
    ),
    "declares an instance": (
        declaring('Declaration("NAME", Config(), Config)'),
        "TypeError: declares 'broken' with the class Config(",
    ),
    "declares no component": (
        declaring('Declaration("NAME", Seen, Config)'),
        "TypeError: declares 'broken' with the class <class 'acme_broken.Seen'> (must be a subclass of Component)",
    ),
    "declares a component of no kind": (
        declaring('Declaration("NAME", type("Bare", (pipeline.Component,), {}), Config)'),
        "TypeError: declares 'broken' with the class Bare (must be a subclass of Receiver, Processor,",
    ),
    "declares a component of two kinds": (
        declaring('Declaration("NAME", type("Both", (pipeline.Receiver, pipeline.Exporter), {}), Config)'),
        "TypeError: declares 'broken' with the class Both (must be a subclass of Receiver, Processor,",
    ),
    "overwrites the kind": (
        declaring('Declaration("NAME", type("Odd", (Counting,), {"kind": "sink"}), Config)'),
        "TypeError: declares processor 'broken' with a class that sets kind to 'sink' (must not set it)",
    ),
    "leaves a method out": (
        declaring('Declaration("NAME", type("Keys", (pipeline.Extension, pipeline.KeyStore), {}), Config)'),
        "TypeError: declares extension 'broken' with the class Keys, which does not implement authenticate",
    ),
    "has options of another base": (
        declaring('Declaration("NAME", Counting, Seen)'),
        "TypeError: declares processor 'broken' with the options <class 'acme_broken.Seen'> (must be a subclass of ComponentConfig)",
    ),
    "takes a word": (
        declaring('Declaration("NAME", Counting, Config, takes="events")'),
        "TypeError: declares processor 'broken' with takes='events' (must be a frozenset of Signal)",
    ),
    "gives words": (
        declaring('Declaration("NAME", Counting, Config, gives={"events"})'),
        "TypeError: declares processor 'broken' with gives={'events'} (must be a frozenset of Signal)",
    ),
    "requires without a comma": (
        declaring('Declaration("NAME", type("Odd", (Counting,), {"requires": (pipeline.KeyStore)}), Config)'),
        "TypeError: declares processor 'broken' with requires = <class 'pipeline.interfaces.KeyStore'> (must be a tuple",
    ),
    "uses without a comma": (
        declaring('Declaration("NAME", type("Odd", (Counting,), {"uses": (pipeline.KeyStore)}), Config)'),
        "TypeError: declares processor 'broken' with uses = <class 'pipeline.interfaces.KeyStore'> (must be a tuple",
    ),
    "has an async method": (
        declaring('Declaration("NAME", type("Odd", (Counting,), {"instruments": Counting.admit}), Config)'),
        "TypeError: declares processor 'broken' with async instruments (must not be async)",
    ),
    "has a value for a method": (
        declaring('Declaration("NAME", type("Odd", (Counting,), {"process": None}), Config)'),
        "TypeError: declares processor 'broken' with process = None (must be a method)",
    ),
    "declares a function as a command": (
        GOOD.replace('click.Command("NAME-report")', "len"),
        "TypeError: declares the command <built-in function len> (must be a click.Command with a name)",
    ),
    "declares a command twice": (
        GOOD.replace('[click.Command("NAME-report")]', '[click.Command("NAME-report")] * 2'),
        "ValueError: declares a command twice",
    ),
    "declares a type twice": (
        GOOD.replace("takes=frozenset(Signal))]", "takes=frozenset(Signal))] * 2"),
        "ValueError: declares a component type twice",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_package_that_is_broken_is_one_line_that_names_it_and_takes_nobody_with_it(site: Path, what: str) -> None:
    source, reason = BROKEN[what]
    first = install(site, "aaa-good", GOOD.replace("NAME", "first"))
    broken = install(site, "acme-broken", source.replace("NAME", "broken"))
    last = install(site, "zzz-good", GOOD.replace("NAME", "last"))

    registry = load_registry()

    (line,) = registry.broken
    assert line.source == broken
    assert line.reason.startswith(reason)
    assert "\n" not in line.reason
    assert registry.sources[Kind.PROCESSOR, "first"] == first
    assert registry.sources[Kind.PROCESSOR, "last"] == last
    assert set(registry.sources.values()) == {*BUILT_IN, first, last}, "of a broken plugin nothing is kept"
    assert [one.name for one in registry.commands if (one.name or "").endswith("-report")] == [
        "first-report",
        "last-report",
    ]


@pytest.mark.parametrize("version", ["2", "0", "'1'", "None"])
def test_a_package_made_for_another_version_of_the_api_says_so_before_anything_else(site: Path, version: str) -> None:
    unknown = GOOD.replace("def declare_components", "def declare_what_comes_later")
    source = install(site, "acme-other", f"{unknown}\nMETRICS_SERVICE_API = {version}\n".replace("NAME", "other"))
    registry = load_registry()
    (broken,) = registry.broken
    assert (broken.source, broken.package) == (source, "acme-other")
    assert broken.reason == (
        f"ValueError: was made for version {version} of the plugin API (METRICS_SERVICE_API), this service has version 1"
    )
    assert (Kind.PROCESSOR, "other") not in registry.declarations


def test_a_package_may_say_that_it_was_made_for_this_version(site: Path) -> None:
    install(site, "acme", f"{GOOD}\nMETRICS_SERVICE_API = {API_VERSION}\n".replace("NAME", "counting"))
    registry = load_registry()
    assert registry.broken == ()
    check_it_works(registry, "counting")


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("acme (acme:plugin)", "acme"),
        ("/opt/plugins (ours)/bad.py", "bad.py"),
        ("bad.py", "bad.py"),
        ("plugins.exporters.debug", "plugins.exporters.debug"),
    ],
)
def test_a_broken_plugin_is_called_by_its_package_or_file(source: str, package: str) -> None:
    assert BrokenPlugin(source, "").package == package


def test_what_is_wrong_with_one_package_is_one_state() -> None:
    found = [
        BrokenPlugin("acme (acme:a)", "one"),
        BrokenPlugin("other (other)", "x"),
        BrokenPlugin("acme (acme:b)", "two"),
    ]
    assert states(found) == {"plugin/acme": "left out: one; two", "plugin/other": "left out: x"}


def contested(broken: BrokenPlugin) -> tuple[str, str]:
    return broken.source, broken.reason


def test_a_type_that_two_packages_declare_belongs_to_neither(site: Path) -> None:
    second = install(site, "bbb", GOOD.replace("NAME-report", "b").replace("NAME", "counting"))
    first = install(site, "aaa", GOOD.replace("NAME-report", "a").replace("NAME", "counting"))
    registry = load_registry()
    assert (Kind.PROCESSOR, "counting") not in registry.declarations
    assert registry.contested == {(Kind.PROCESSOR, "counting"): (first, second)}
    assert [contested(one) for one in registry.broken] == [
        (second, f"processor 'counting' is declared by {first} and {second}")
    ]


def test_of_a_package_whose_second_type_is_contested_the_first_can_be_used(site: Path) -> None:
    both = GOOD.replace(
        'return [Declaration("NAME", Counting, Config, takes=frozenset(Signal))]',
        'return [Declaration(name, Counting, Config, takes=frozenset(Signal)) for name in ("fresh", "validate")]',
    )
    source = install(site, "acme", both.replace("NAME", "fresh"))
    registry = load_registry()
    check_it_works(registry, "fresh")
    assert registry.contested == {(Kind.PROCESSOR, "validate"): ("plugins.processors.validate", source)}


def test_a_command_that_two_packages_declare_says_so_and_does_nothing(site: Path) -> None:
    report = GOOD.replace("NAME-report", "report")
    first = install(site, "aaa", report.replace("NAME", "one"))
    second = install(site, "bbb", report.replace("NAME", "two"))
    registry = load_registry()
    assert [contested(one) for one in registry.broken] == [
        (second, f"the command 'report' is declared by {first} and {second}")
    ]
    (command,) = (one for one in registry.commands if one.name == "report")
    with pytest.raises(StartError) as refused:
        command.main(["--any", "thing"], standalone_mode=False)
    assert str(refused.value) == f"the command 'report' is declared by {first} and {second} (uninstall all but one)"
    assert refused.value.exit_code == 2


CONTESTS = {
    "two packages": ({"aaa": "counting", "bbb": "counting"}, {}, "counting", "aaa (aaa) and bbb (bbb)"),
    "a built-in's name": ({"acme": "filter"}, {}, "filter", "plugins.processors.filter and acme (acme)"),
    "a loose file": ({"acme": "counting"}, {"copy.py": "counting"}, "counting", "acme (acme) and LOOSE/copy.py"),
    "two loose files": ({}, {"a.py": "counting", "b.py": "counting"}, "counting", "LOOSE/a.py and LOOSE/b.py"),
}


@pytest.mark.parametrize("contest", CONTESTS)
def test_a_configuration_that_uses_a_contested_type_is_wrong_and_any_other_is_not(
    site: Path, tmp_path: Path, contest: str
) -> None:
    packages, files, type_, both = CONTESTS[contest]
    for package, name in packages.items():
        install(site, package, GOOD.replace("NAME-report", f"{package}-report").replace("NAME", name))
    loose = tmp_path / "loose"
    loose.mkdir()
    for file, name in files.items():
        (loose / file).write_text(GOOD.replace("NAME-report", f"{file}-report").replace("NAME", name))
    using = tmp_path / "using.yaml"
    using.write_text(f"extends: development\nprocessors:\n  {type_}:\n")
    registry = load_registry(loose)
    environ = environment(tmp_path)
    with pytest.raises(ConfigError) as wrong:
        load_configuration([str(using)], [], environ, registry)
    names = both.replace("LOOSE", str(loose))
    said = f"the type '{type_}' of processor is declared by {names} (uninstall all but one)"
    assert said in str(wrong.value)
    assert f"{using.name}:3" in str(wrong.value) or f"processors.{type_}" in str(wrong.value)
    (broken,) = load_configuration(["development"], [], environ, registry).broken
    assert broken.reason == f"processor '{type_}' is declared by {names}"


def test_an_entry_point_to_what_is_not_there_is_one_line(site: Path) -> None:
    install(site, "acme", "", entry_points=f"[{ENTRY_POINTS}]\na = acme:nothing\nb = gone\n")
    assert [(one.source, one.reason) for one in load_registry().broken] == [
        ("acme (acme:nothing)", "AttributeError: module 'acme' has no attribute 'nothing'"),
        ("acme (gone)", "ModuleNotFoundError: No module named 'gone'"),
    ]


def test_a_module_that_is_named_by_two_entry_points_works_and_is_reported_once(site: Path) -> None:
    source = GOOD.replace("NAME", "counting")
    known = install(site, "acme", source, entry_points=f"[{ENTRY_POINTS}]\na = acme\nb = acme\n")
    registry = load_registry()
    check_it_works(registry, "counting")
    assert [one.source for one in registry.broken] == [known]


@pytest.mark.usefixtures("site")
def test_loose_files_of_a_folder_are_plugins_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(GOOD.replace("NAME", "counting"))
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    (tmp_path / "notes.txt").write_text("no plugin")

    registry = load_registry(tmp_path)

    assert [(one.source, one.reason) for one in registry.broken] == [
        (str(tmp_path / "bad.py"), "ModuleNotFoundError: No module named 'nothing_of_that_name'")
    ]
    assert registry.sources[Kind.PROCESSOR, "counting"] == str(tmp_path / "counting.py")
    check_it_works(registry, "counting")
    check_it_works(load_registry(tmp_path), "counting")


def test_a_folder_of_plugins_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (broken,) = load_registry(tmp_path / "nowhere").broken
    assert (broken.source, broken.reason) == (str(tmp_path / "nowhere"), "is not a folder")


def test_plugin_objects_can_be_given(site: Path) -> None:
    install(site, "acme", GOOD.replace("NAME", "counting"), entry_points="[other]\n")
    registry = load_registry(extra=[importlib.import_module("acme")])
    assert registry.sources[Kind.PROCESSOR, "counting"] == "acme"
    assert all(isinstance(command, click.Command) for command in registry.commands)
