"""Other people's tests: a folder with a plugin and a test of it, and nothing of ours but the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.pipeline.testing.subjects import PROCESSOR

TEST = """
import acme_words
from pipeline.testing import ProcessorConformance


class TestWords(ProcessorConformance):
    plugin = acme_words
    type = "words"
"""


def run_tests(folder: Path, plugin: str) -> tuple[int, str]:
    """What pytest ends with, and what it prints."""
    (folder / "acme_words.py").write_text(plugin)
    (folder / "test_words.py").write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(folder)]
    ended = subprocess.run([*command, "test_words.py"], cwd=folder, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout


def test_a_test_class_needs_nothing_but_the_plugin_and_the_type(tmp_path: Path) -> None:
    code, printed = run_tests(tmp_path, PROCESSOR)
    assert code == 0, printed
    assert "skipped" not in printed


def test_a_fault_is_told_in_a_sentence_without_a_traceback_of_ours(tmp_path: Path) -> None:
    code, printed = run_tests(tmp_path, PROCESSOR.replace("        return batch\n", ""))
    assert code == 1
    assert "process returns None (return the batch, or one with less in it)" in printed
    assert "conformance.py" not in printed
