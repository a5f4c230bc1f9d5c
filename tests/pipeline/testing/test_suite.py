"""The suite can fail: each of its checks notices what it is for, in a plugin that is good otherwise."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.testing import remains, stage
from tests.pipeline.testing import spoiled_declarations, spoiled_lives
from tests.pipeline.testing.spoiled import Fault
from tests.pipeline.testing.subjects import GOOD, OfShelf, Subjects, checks, make

pytestmark = pytest.mark.anyio

FAULTS = [*spoiled_declarations.FAULTS, *spoiled_lives.FAULTS]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on `sys.path` for plugins; the suite waits for little, since it waits in vain."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(stage, "PATIENCE", 0.2)
    monkeypatch.setattr(remains, "SETTLE", 0.1)
    monkeypatch.setattr(os, "shelf_is_open", None, raising=False)
    monkeypatch.delattr(os, "shelf_is_open")
    return folder


async def run(subject: Any, check: str, folder: Path) -> None:
    """One test of a suite, as pytest would call it."""
    method = getattr(subject, check)
    result = method(folder) if inspect.signature(method).parameters else method()
    if inspect.isawaitable(result):
        await result


@pytest.mark.parametrize(("suite", "check"), [(suite, check) for suite in GOOD for check in checks(suite)])
async def test_a_good_plugin_passes(suite: Subjects, check: str, site: Path, tmp_path: Path) -> None:
    await run(make(suite, site, suite.source, f"acme_{suite.type}"), check, tmp_path)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.check)
async def test_a_fault_is_noticed(fault: Fault, site: Path, tmp_path: Path) -> None:
    assert fault.old in fault.suite.source
    subject = make(fault.suite, site, fault.suite.source.replace(fault.old, fault.new), fault.module)
    subject.type = fault.type or subject.type
    with pytest.raises(pytest.fail.Exception) as caught:
        await run(subject, f"test_{fault.check}", tmp_path)
    for file in subject.plugin.OURS if fault.suite is OfShelf else ():
        if isinstance(file, int):
            os.close(file)
    assert fault.says in str(caught.value)


def test_there_is_a_fault_for_every_check() -> None:
    noticed = {f"test_{fault.check}" for fault in FAULTS}
    assert {check for suite in GOOD for check in checks(suite)} == noticed
