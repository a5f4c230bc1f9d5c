"""The table of answers in docs/forwarding.md is the one in the code."""

from __future__ import annotations

import re

from plugins.exporters.otlp.answers import _GRPC, _HTTP, Action, of_grpc, of_http
from tests.test_docs import DOCS, table

ROWS = {f"`{row}`": does for row, does in table(DOCS / "forwarding.md", "answer").items()}
WORDS = {
    "on to the next": {Action.TAKEN},
    "again after": {Action.RETRY},
    "in halves": {Action.HALVE},
    "halved to find": {Action.SEARCH},
    "held, and tried": {Action.HOLD, Action.HOLD_CREDENTIAL},
    "dead letters": {Action.SET_ASIDE},
}
TOO_LARGE = "`RESOURCE_EXHAUSTED` for a message that is too large"


def actions(text: str) -> set[Action]:
    """What a row's second column says that we do."""
    return next(meant for words, meant in WORDS.items() if text.startswith(words))


def test_every_status_and_code_that_the_table_names_leads_to_what_it_says() -> None:
    for row, does in ROWS.items():
        for status in map(int, re.findall(r"\b[1-5]\d\d\b", row)):
            assert of_http(status, {}, "").action in actions(does), (status, does)
        for code in re.findall(r"`([A-Z_]+)\b", row.replace(TOO_LARGE, "")):
            assert of_grpc(code, "").action in actions(does), (code, does)


def test_every_status_and_code_that_is_treated_by_itself_is_named() -> None:
    named = set(re.findall(r"\b[1-5]\d\d\b|(?<=`)[A-Z_]+\b", " ".join(ROWS)))
    assert {str(status) for status in _HTTP} | set(_GRPC) <= named


def test_a_message_that_is_too_large_is_halved_as_the_table_says() -> None:
    (does,) = (does for row, does in ROWS.items() if TOO_LARGE in row)
    assert {of_grpc("RESOURCE_EXHAUSTED", "received message larger than max (5 vs. 4)").action} == actions(does)
