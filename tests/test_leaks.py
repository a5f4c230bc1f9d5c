"""The search for secrets in what the tests logged finds them; else its silence would say nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from plugins.extensions.api_keys.keys import digest, new_key
from tests.leaks import digests_shown, found

ROOT = Path(__file__).parents[1]


def test_a_secret_is_found_and_not_shown_again() -> None:
    key = new_key()
    log = f"good\nheaders: {{'x-api-key': '{key}'}}\ngood\nand {key[:30]}\n{key} at the end".encode()
    assert list(found(log, ["something-else", key])) == [
        f"headers: {{'x-api-key': '<SECRET>{key[24:]}'}}",
        f"and <SECRET>{key[24:30]}",
        f"<SECRET>{key[24:]} at the end",
    ]


def test_the_beginning_of_a_digest_is_found() -> None:
    key = new_key()
    hidden = digest(key)
    log = f"good {hidden[1:9]} x{hidden[:8]} {hidden[:8]}0{hidden[9:]}\nkey={hidden[:8]}\nof {hidden}!\n".encode()
    assert set(digests_shown(log, [key, new_key()])) == {hidden[:8].encode(), hidden.encode()}
    assert "of <SECRET>!" in list(found(log, [key]))


def test_words_are_no_secrets() -> None:
    assert list(found(b"a key, hush", ["hush", "", "key"])) == []


LEAKS = {
    "by its message": "logging.getLogger('x').info('who: %s', SECRET)",
    "in what was handed over with it": "logging.getLogger('x').info('who', extra={'who': {'key': SECRET}})",
    "by a traceback": """
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger('x').exception('failed')""",
    "printed": "print(SECRET)",
    "by its digest": "logging.getLogger('x').info('key %s', sha256(SECRET.encode()).hexdigest()[:8])",
    "by a process": "Path('log').write_text(SECRET); keep_log(Path('log'), 0)",
    "although logs were set up": "set_up_logs('info', 'json')\ndef test_next(): logging.getLogger('x').error(SECRET)",
}


@pytest.mark.parametrize(
    ("leak", "is_found", "workers"),
    [
        *((leak, True, 0) for leak in LEAKS.values()),
        (LEAKS["printed"], True, 2),
        ("pass", False, 0),
        ("pass", False, 2),
    ],
)
def test_a_run_that_leaks_fails(tmp_path: Path, leak: str, is_found: bool, workers: int) -> None:
    program = f"""
import logging
from hashlib import sha256
from pathlib import Path
from pipeline.logs import set_up_logs
from tests.leaks import keep_log, secret

SECRET = secret("the-secret-of-this-very-test")

def test_leak():
    {leak}
"""
    (tmp_path / "test_it.py").write_text(program)
    words = [sys.executable, "-m", "pytest", "-p", "tests.leaks", "-n", str(workers), "--rootdir", ".", "test_it.py"]
    ended = subprocess.run(
        words, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert " 1 failed" not in ended.stdout, ended.stdout
    assert ended.returncode == int(is_found), ended.stdout
    assert ("of what the tests logged hold a secret" in ended.stdout) == is_found
