"""What every generated page is written with."""

from __future__ import annotations

NOTE = "<!-- Generated from the code by `make docs`; changes made here are lost. -->"


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown, one line a row."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in line)} |" for line in lines
    )
