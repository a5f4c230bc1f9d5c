"""Plugins of other people: found by real entry points and in a folder, and left out one by one if they are broken."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline import API_VERSION, Context, Kind, Processor
from pipeline.registry import BUILT_IN, ENTRY_POINTS, BrokenPlugin, Registry, load_registry, states
from pipeline.testing import NopHost

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
    "declares something else": (GOOD.replace("return [Decl", "return ['x'] and [len] or [Decl"), "AttributeError:"),
    "claims a built-in type": (
        GOOD.replace("NAME", "validate"),
        "ValueError: declares processor 'validate', which plugins.processors.validate already brings",
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


def test_of_two_packages_that_claim_one_type_the_first_by_name_has_it(site: Path) -> None:
    second = install(site, "bbb", GOOD.replace("NAME", "counting"))
    first = install(site, "aaa", GOOD.replace("NAME", "counting"))
    registry = load_registry()
    assert registry.sources[Kind.PROCESSOR, "counting"] == first
    assert [(one.source, one.reason) for one in registry.broken] == [
        (second, f"ValueError: declares processor 'counting', which {first} already brings")
    ]


def test_a_package_whose_second_type_is_taken_brings_none(site: Path) -> None:
    both = GOOD.replace(
        'return [Declaration("NAME", Counting, Config, takes=frozenset(Signal))]',
        'return [Declaration(name, Counting, Config, takes=frozenset(Signal)) for name in ("fresh", "validate")]',
    )
    install(site, "acme", both.replace("NAME", "fresh"))
    registry = load_registry()
    assert (Kind.PROCESSOR, "fresh") not in registry.declarations
    assert len(registry.broken) == 1


def test_a_command_that_another_plugin_brings_is_refused(site: Path) -> None:
    install(site, "aaa", GOOD.replace("NAME", "one"))
    second = install(site, "bbb", GOOD.replace("NAME-report", "one-report").replace("NAME", "two"))
    registry = load_registry()
    assert [(one.source, one.reason) for one in registry.broken] == [
        (second, "ValueError: declares the command 'one-report', which another plugin already brings")
    ]
    assert (Kind.PROCESSOR, "two") not in registry.declarations


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
