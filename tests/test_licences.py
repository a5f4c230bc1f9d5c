"""Everything that is installed with the service may be: its licence is one of those below."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest

LOCK = Path(__file__).parents[1] / "requirements.lock"
ALLOWED = {
    "Apache-2.0": ("Apache 2.0", "Apache Software License"),
    "BSD-2-Clause": (),
    "BSD-3-Clause": ("3-Clause BSD License", "BSD License"),
    "MIT": ("MIT License",),
    "MPL-2.0": ("Mozilla Public License 2.0 (MPL 2.0)",),
    "PSF-2.0": ("Python Software Foundation License",),
}
"""By the names of SPDX, and what packages call them that don't use those. Of them MPL-2.0 alone asks for something in return: the
source of changes to its own files, of which we make none."""
_NAMES = {other: name for name, others in ALLOWED.items() for other in (name, *others)}


def refused(expression: str | None, text: str | None, classifiers: list[str]) -> str | None:
    """What of this is not allowed, or not to be understood; None if all of it is."""
    words = (
        re.split(r" (?:AND|OR) ", expression) if expression else [each.rpartition(" :: ")[2] for each in classifiers]
    )
    words = words or [(text or "").strip().partition("\n")[0]]
    return next((word for word in words if word not in _NAMES), None)


def licence(name: str) -> str | None:
    """What of a package's licence is not allowed."""
    of = metadata(name).json
    classifiers = [each for each in of.get("classifier", []) if each.startswith("License :: ")]
    expression, text = (str(of[field]) if field in of else None for field in ("license_expression", "license"))
    return refused(expression, text, classifiers)


def test_the_licence_of_everything_that_is_locked_is_allowed() -> None:
    names = re.findall(r"^([A-Za-z0-9._-]+)==", LOCK.read_text(), re.MULTILINE)
    assert len(names) > 40
    assert {name: word for name in names if (word := licence(name)) is not None} == {}


@pytest.mark.parametrize(
    ("expression", "text", "classifiers"),
    [
        ("GPL-3.0-or-later", None, []),
        ("MIT AND AGPL-3.0-only", "MIT", []),
        (None, "MIT", ["License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]),
        (None, "All rights reserved", []),
        (None, None, []),
    ],
)
def test_another_licence_is_found(expression: str | None, text: str | None, classifiers: list[str]) -> None:
    assert refused(expression, text, classifiers) is not None
