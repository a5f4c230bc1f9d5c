"""The documentation says what is so: generated pages are fresh, examples work, links and names lead somewhere."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from docs.generate import PAGES, smallest_yaml
from pipeline import hookspecs
from pipeline.checked_entry import MOST_BYTES
from pipeline.cli import EXIT_SECONDS, command_line, parse_common
from pipeline.component import Kind
from pipeline.config.files import SHIPPED
from pipeline.config.load import load_configuration
from pipeline.config.model import ServiceSettings
from pipeline.deadlines import Deadlines
from pipeline.guard import CHUNKS, LENGTH_DIGITS, LINGER_SECONDS, SKIPPED_BYTES
from pipeline.hard_exit import MARGIN
from pipeline.presence import Presence
from pipeline.registry import load_registry
from pipeline.routes import Access
from pipeline.service import Service
from plugins.extensions.retention.tables import LARGE_CLEANUP
from plugins.receivers.http.answers import _STATUS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = DOCS / "api.md"
README = ROOT / "README.md"
PAGES_OF_DOCS = sorted(DOCS.rglob("*.md"))
WRITTEN = [README, *(path for path in PAGES_OF_DOCS if path.name not in PAGES)]
TEXTS = [README, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *PAGES_OF_DOCS]
REGISTRY = load_registry(installed=False)
MOST_LINES = 60


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def table(path: Path, heading: str) -> dict[str, str]:
    """The first two columns of the table whose first column is called that."""
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"^\| {heading} \|.*\n\|.*\n((?:\|.*\n?)+)", text, re.MULTILINE)
    assert found, f"{named(path)} has no table of {heading}"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return {cells[0].strip("`"): cells[1] for cells in rows}


def targets(path: Path) -> Iterator[tuple[Path, str]]:
    """The files that a page links to, by relative links, each with the heading that is meant."""
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            file, _, fragment = target.partition("#")
            yield ((path.parent / file).resolve() if file else path), fragment


def links(path: Path) -> Iterator[Path]:
    """The files that a page links to, by relative links."""
    return (file for file, _ in targets(path))


def anchors(path: Path) -> Iterator[str]:
    """What a link to a heading of a page ends in, by GitHub's rule: lower case, spaces as `-`, no other punctuation; `-1` and so on
    for one that is there already."""
    counted: Counter[str] = Counter()
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6} (.+)$", prose, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w -]", "", words.strip().lower()).replace(" ", "-")
        yield f"{slug}-{counted[slug]}" if counted[slug] else slug
        counted[slug] += 1


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "stale: run `make docs`"


def test_the_readme_fits_on_one_screen() -> None:
    assert README.read_text(encoding="utf-8").count("\n") <= MOST_LINES


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_link_leads_somewhere(path: Path) -> None:
    assert [target for target in links(path) if not target.exists()] == []


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_link_to_a_heading_leads_to_one(path: Path) -> None:
    meant = [(file, fragment) for file, fragment in targets(path) if fragment and file.suffix == ".md"]
    assert [(named(file), fragment) for file, fragment in meant if fragment not in anchors(file)] == []


def test_a_heading_is_linked_to_as_on_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n## `doctor`: what's in_it?\n```sh\n# no heading\n```\n## [Two](#two) - 2\n### A page\n")
    assert list(anchors(page)) == ["a-page", "doctor-whats-in_it", "two---2", "a-page-1"]


def test_every_page_is_reached_from_the_index() -> None:
    assert (DOCS / "index.md").resolve() in links(README)
    reached, new = set(), {DOCS / "index.md"}
    while new:
        reached |= new
        new = {target for page in new for target in links(page) if target.suffix == ".md"} - reached
    assert set(PAGES_OF_DOCS) - reached == set()


def test_the_index_lists_every_page() -> None:
    """Except runbooks: the page of alerts lists these."""
    pages = {path for path in PAGES_OF_DOCS if path.parent.name != "runbooks"}
    assert sorted(map(named, pages - set(links(DOCS / "index.md")))) == ["docs/index.md"]
    runbooks = {path for path in PAGES_OF_DOCS if path.parent.name == "runbooks"}
    assert runbooks - set(links(DOCS / "alerts.md")) == set()


YAML = [(path, text) for path in TEXTS for text in blocks(path, "yaml")]


@pytest.mark.parametrize(
    ("path", "text"), YAML, ids=[f"{named(path)}-{number}" for number, (path, _) in enumerate(YAML)]
)
def test_every_configuration_that_is_shown_loads(path: Path, text: str, tmp_path: Path) -> None:
    for number, plugin in enumerate(blocks(path, "python")):
        (tmp_path / f"plugin_{number}.py").write_text(plugin)
    (tmp_path / "shown.yaml").write_text(text)
    # One that is no whole configuration is meant to be laid over the one that runs.
    below = [] if re.search(r"^(extends|service):", text, re.MULTILINE) else ["development"]
    load_configuration([*below, str(tmp_path / "shown.yaml")], [], {}, load_registry(tmp_path, installed=False))


@pytest.mark.parametrize(("kind", "type_"), sorted(REGISTRY.declarations))
def test_the_smallest_configuration_of_every_component_loads(kind: Kind, type_: str, tmp_path: Path) -> None:
    text = smallest_yaml(REGISTRY.declarations[kind, type_], REGISTRY.sources[kind, type_])
    assert re.search(rf"^  {type_}:", text, re.MULTILINE), "shows the component itself"
    (tmp_path / "shown.yaml").write_text(text)
    found = load_configuration(["development", str(tmp_path / "shown.yaml")], [], {}, REGISTRY)
    assert (kind, type_) in found.configured


COMMANDS = sorted(
    {
        line
        for path in WRITTEN
        for text in blocks(path, "sh")
        for line in text.splitlines()
        if "metrics-service " in line
    }
    | {line for path in WRITTEN for line in re.findall(r"`(metrics-service [^`]+)`", path.read_text(encoding="utf-8"))}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_that_is_shown_is_one(line: str) -> None:
    invocation, rest = parse_common(shlex.split(line.partition("metrics-service ")[2]))
    assert not rest or rest[0] != "metrics-service"
    invocation.config = [name for name in invocation.config if name in SHIPPED]
    invocation.env_file = None
    context = click.Context(command_line(REGISTRY))
    while rest and isinstance(context.command, click.Group):
        assert rest[0] in context.command.commands, line
        context = click.Context(context.command.commands[rest.pop(0)], context)
    if rest or not isinstance(context.command, click.Group):
        context.command.parse_args(context, rest)
    if invocation.overrides:
        load_configuration(invocation.config, invocation.overrides, {}, REGISTRY)


def test_every_make_target_that_is_shown_is_one() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {name for path in TEXTS for name in re.findall(r"[`\n]make (\w+)[`\n]", path.read_text(encoding="utf-8"))}
    assert shown >= {"run", "test"}
    assert shown - targets == set()


def defined(path: Path) -> set[str]:
    """The classes and functions of a module, methods as `Class.method`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{each.name}" for each in node.body if hasattr(each, "name")}
    return names


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_every_file_and_function_that_is_named_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for file, _, name in re.findall(r"`((?:pipeline|plugins|tests|docs|config|bench)/[\w/.]+?)(:([\w.]+))?`", text):
        assert (ROOT / file).exists(), file
        assert not name or name in defined(ROOT / file), f"{file}:{name}"


def test_every_page_that_the_code_cites_is_there() -> None:
    folders = ("pipeline", "plugins", "config", "tests", "bench")
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    cited = {
        (page, named(path))
        for path in files
        if path.suffix in (".py", ".sql", ".yaml")
        # A name in quotes is no citation but a part of a path.
        for page in re.findall(r'(?<![\w/."-])[\w/.-]+\.md\b', path.read_text(encoding="utf-8"))
    }
    assert ("docs/api.md", "plugins/receivers/http/pages.py") in cited
    assert [(page, file) for page, file in sorted(cited) if not (ROOT / page).is_file()] == []


def test_every_folder_of_the_tree_is_there_and_the_components_are_those_that_there_are() -> None:
    (tree,) = blocks(DOCS / "architecture.md", "text")
    shown = dict(line.split(maxsplit=1) for line in tree.splitlines())
    assert [folder for folder in shown if not (ROOT / folder).is_dir()] == []
    for kind in Kind:
        types = shown[f"plugins/{kind}s/"].partition(":")[0].split(", ")
        assert sorted(types) == (REGISTRY.types(kind) or ["none yet"])


def test_the_dependencies_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {
        "To run": project["project"]["dependencies"],
        **{f"Extra `{extra}`": libraries for extra, libraries in project["project"]["optional-dependencies"].items()},
        "To work on it": [*project["dependency-groups"]["dev"], *project["build-system"]["requires"]],
    }
    sections = dict(
        re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (DOCS / "dependencies.md").read_text(), re.MULTILINE | re.DOTALL)
    )
    for heading, wanted in names.items():
        listed = set(re.findall(r"^\| ([\w-]+) \| \S", sections[heading], re.MULTILINE)) - {"library"}
        assert listed == {re.split(r"[><=\[ ]", each)[0] for each in wanted}, heading
    assert sections.keys() == names.keys()


def test_the_statuses_that_are_explained_are_those_that_are_given() -> None:
    by_the_framework = {404, 405, 500}
    given = {200, *_STATUS.values(), *by_the_framework}
    assert set(map(int, table(API, "status"))) == given
    assert set(map(int, table(API, "what is wrong").values())) <= given


def test_the_calls_that_are_explained_are_those_of_a_service_with_the_keys_that_it_asks_for() -> None:
    service = Service(load_configuration(["development"], [], {}, REGISTRY))
    routes = [route for component in service.graph.components() for route in component.routes()]
    keys = {Access.PUBLIC: "none", Access.KEY: "any"}
    assert table(API, "call") == {
        f"{route.method} {route.path}": keys.get(route.access, f"`{route.access}`") for route in routes
    }
    calls = set(re.findall(r"\b(?:GET|HEAD|POST|PUT|PATCH|DELETE) /[\w/{}.-]*", API.read_text(encoding="utf-8")))
    assert calls == table(API, "call").keys()


def test_the_hooks_and_the_kinds_that_are_explained_are_those_that_there_are() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("declare_")}
    assert table(DOCS / "plugin-reference.md", "hook").keys() == hooks
    assert list(table(DOCS / "plugin-reference.md", "kind")) == [kind.value for kind in Kind]


def test_the_series_that_are_explained_are_those_of_the_shipped_configuration() -> None:
    text = API.read_text(encoding="utf-8").partition("## Series")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*\|$", text, re.MULTILINE)
    ]
    config = load_configuration(["production"], [], {}, REGISTRY).components[Kind.CONNECTOR, "series"].config
    types = config.model_dump()["types"]
    assert [row[0].strip("`") for row in rows] == list(types)
    for (_, *names, labels), rule in zip(rows, types.values(), strict=True):
        shown = {name for cell in names for name in re.findall(r"`(mcp_\w+)`", cell)}
        assert shown == {rule[kind] for kind in ("counter", "histogram", "gauge")} - {None}
        assert labels.split(", ") == list(rule["labels"])


LIMITS = Deadlines()
SETTINGS = ServiceSettings.model_fields
STOP = SETTINGS["drain_delay"].default + 2 * SETTINGS["stop_timeout"].default + MARGIN
EXAMINED = {name: each.default for name, each in inspect.signature(Presence).parameters.items()}


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("plugin-reference.md", f"| `start` | {LIMITS.start:g} s;"),
        ("plugin-reference.md", f"| `admit`, `process`, `decode` | {LIMITS.call:g} s |"),
        ("plugin-reference.md", f"| `export` | none; reported after {LIMITS.export_reported:g} s |"),
        ("plugin-reference.md", f"| `flush` of all exporters together | {LIMITS.flush:g} s |"),
        ("plugin-reference.md", f"| `reload`, with all of the reload | {LIMITS.reload:g} s |"),
        ("plugin-reference.md", f"| the handler of a route | none; reported after {LIMITS.route_reported:g} s |"),
        ("plugin-reference.md", f"has not returned after {LIMITS.reported:g} seconds"),
        ("plugin-reference.md", f"(`export`: {LIMITS.export_cancelled:g})"),
        ("plugin-reference.md", f"at most {MOST_BYTES // 2**20} MiB"),
        ("operating.md", f"did not return within {LIMITS.start:g} seconds"),
        ("operating.md", f"and {MARGIN:g} seconds: {STOP:g} seconds by default"),
        ("operating.md", f"have {EXIT_SECONDS:g} seconds to end"),
        ("operating.md", f"it is not back after {EXAMINED['grace']:g} seconds"),
        ("operating.md", f"does not answer for {EXAMINED['patience']:g} seconds"),
        ("operating.md", f"and more than {LARGE_CLEANUP:,} are"),
        ("runbooks/DataFileMissing.md", f"not back after {EXAMINED['grace']:g} seconds"),
        ("runbooks/RetentionStopped.md", f"and more than {LARGE_CLEANUP:,}, are old"),
        ("components.md", f"more than {LARGE_CLEANUP:,} rows"),
        ("reload.md", f"does not finish within {LIMITS.reload:g} seconds"),
        ("api.md", f"503 after {LIMITS.flush:g} s"),
        ("api.md", f"a processor did not return within {LIMITS.call:g} s"),
        ("security.md", f"a length of more than {LENGTH_DIGITS} digits"),
        ("security.md", f"| chunks of a body | {CHUNKS:,} |"),
        ("security.md", f"for {LINGER_SECONDS:g} s it is read and discarded"),
        ("security.md", f"bodies of more than {SKIPPED_BYTES // 1024} KiB"),
    ],
)
def test_a_limit_that_a_page_names_is_that_of_the_code(page: str, sentence: str) -> None:
    assert sentence in (DOCS / page).read_text(encoding="utf-8")
