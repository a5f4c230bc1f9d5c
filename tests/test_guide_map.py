"""docs/guide-map.md names all that the deployment guide says, and what it says is here is here."""

from __future__ import annotations

import re

import pytest

from tests.guide import GUIDE, MAP, ROOT, missing, names, sections_of_guide, sections_of_map

TEXT = MAP.read_text(encoding="utf-8")
MAPPED = sections_of_map(TEXT)
HERE = re.findall(r"`([^`]+)`", "\n".join(here for _, rows in MAPPED for _, here in rows))
HERE += [quoted for line in TEXT.splitlines() if not line.startswith("|") for quoted in re.findall(r"`([^`]+)`", line)]
"""All that is quoted of ours."""


@pytest.fixture
def guide() -> str:
    """The guide's text."""
    if not GUIDE.exists():
        pytest.skip(f"there is no deployment guide at {GUIDE} (DEPLOYMENT_GUIDE may name a copy)")
    return GUIDE.read_text(encoding="utf-8")


def test_the_map_has_the_sections_of_the_guide_in_its_order(guide: str) -> None:
    assert [heading for heading, _ in MAPPED] == [heading for heading, _ in sections_of_guide(guide)]


def test_all_that_the_guide_says_is_on_the_map(guide: str) -> None:
    found = sections_of_guide(guide)
    assert sum(len(items) for _, items in found) > 350, "the reader reads"
    assert missing(found, MAPPED) == []


def test_nothing_is_on_the_map_that_the_guide_does_not_say(guide: str) -> None:
    said = dict(enumerate(sections_of_guide(guide)))
    for number, (heading, rows) in enumerate(MAPPED):
        for items, _ in rows:
            assert [item for item in items if not any(names(item, line) for line in said[number][1])] == [], heading


def test_every_variable_path_and_port_of_the_guide_is_in_an_item(guide: str) -> None:
    items = "\n".join(line for _, lines in sections_of_guide(guide) for line in lines)
    for pattern in (r"\b[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+\b", r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]+", r"(?<=:)\d{2,5}\b"):
        assert set(re.findall(pattern, guide)) - set(re.findall(pattern, items)) == set()


def test_a_line_that_is_taken_from_the_map_is_missed(guide: str) -> None:
    """The control, for every line of it."""
    found = sections_of_guide(guide)
    for number, (heading, rows) in enumerate(MAPPED):
        for row in rows:
            less = [*MAPPED[:number], (heading, [each for each in rows if each is not row]), *MAPPED[number + 1 :]]
            assert missing(found, less), row


SAMPLE = """
# Guide
## Table of Contents
- [Start](#start)
## Start
1. **Set up**:
```bash
# /etc/x/config
A_B="1"

# Comment
curl -X POST http://x:1 \\
  -d 1
```
- ✅ Done
| `C_D` | `7` | what |
```yaml
a:
  - b: c
}
```
"""


def test_the_reader_finds_steps_files_lines_checks_variables_and_defaults() -> None:
    items = ["Set up", "/etc/x/config", 'A_B="1"', "curl -X POST http://x:1 -d 1", "Done", "C_D", "7", "- b: c"]
    assert sections_of_guide(SAMPLE) == [("Start", items)]


def test_an_item_is_the_line_or_its_beginning() -> None:
    assert names("curl -X …", "curl -X POST")
    assert names("curl", "curl")
    assert not names("curl", "curl -X POST")
    assert not names("…", "curl")


@pytest.mark.parametrize(("heading", "rows"), MAPPED, ids=[heading for heading, _ in MAPPED])
def test_each_line_works_or_is_replaced_or_left_out_with_the_reason(
    heading: str, rows: list[tuple[list[str], str]]
) -> None:
    for items, here in rows:
        assert items
        assert re.match(r"works\b|replaced by .*\bbecause\b|left out, because\b", here), (heading, items)


FOLDERS = r"(?:deploy|k8s|docs|tests|config)(?:/[\w./-]+)?"
FILES = re.compile(
    rf"{FOLDERS}|Dockerfile|[\w.-]*compose[\w.-]*\.ya?ml|\.env\.example|requirements[\w-]*\.lock|[\w-]+\.py"
)
WORDS = {word for each in HERE for word in each.split()}


@pytest.mark.parametrize("path", sorted(filter(FILES.fullmatch, WORDS)))
def test_every_file_that_is_named_as_ours_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_variable_that_is_named_as_ours_is_one() -> None:
    text = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    named = {found[1] for each in HERE if (found := re.fullmatch(r"([A-Z]+(?:_[A-Z]+)+)(?:=.*)?", each))}
    assert len(named) > 5
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_every_call_and_metric_that_is_named_as_ours_is_one() -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("api.md", "metrics.md")]
    for each in HERE:
        if re.fullmatch(r"(GET|POST|PUT) /.*|[a-z_]+_(total|bytes|tokens)", each):
            assert any(f"`{each}`" in page for page in pages), each
