"""The simple `.env` format: `NAME=value`, comments, `export`, quotes."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.problems import Mark, Problems

_LINE = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)\s*=(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"""\s*(?:'(?P<literal>[^']*)'|"(?P<escaped>(?:[^"\\]|\\.)*)")\s*(?:(?<=\s)#.*)?""", re.DOTALL)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$"}


def read_env_file(path: str | Path) -> dict[str, str]:
    """The variables in a `.env` file; the last one of a name counts.

    An unquoted value ends before white space and `#`. In double quotes a backslash escapes `n r t " \\ $`; in single quotes
    nothing is special. Raises `ConfigError` for a file that cannot be read, and for each line that is none of this; the
    lines themselves are not quoted, since they may hold secrets.
    """
    problems = Problems()
    values = {}
    for number, line in enumerate(_lines(path, problems), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LINE.fullmatch(text)
        value = _value(match["value"]) if match else None
        if not match:
            problems.add(Mark(str(path), number), (), "must be NAME=value, a comment or empty")
        elif value is None:
            problems.add(Mark(str(path), number), (match["name"],), "has a quote that does not end, or text behind it")
        else:
            values[match["name"]] = value
    problems.raise_any()
    return values


def _lines(path: str | Path, problems: Problems) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        problems.add(Mark(str(path)), (), f"cannot read the env file: {(error.strerror or '').lower()}")
    except UnicodeDecodeError:
        problems.add(Mark(str(path)), (), "is not UTF-8 text")
    return []


def _value(text: str) -> str | None:
    """The value of what stands behind the equals sign, or None."""
    if text.lstrip()[:1] not in ("'", '"'):
        return text.strip() if text.startswith("#") else _COMMENT.sub("", text).strip()
    match = _QUOTED.fullmatch(text)
    if not match:
        return None
    if match["literal"] is not None:
        return match["literal"]
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), match["escaped"])
