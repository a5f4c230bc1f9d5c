"""The failures that cross a wall of the service."""

from __future__ import annotations

import re

import pytest

from pipeline import Invalid, Overloaded, RateLimited, Retryable, StartError, errors
from pipeline.config.problems import Mark, Problem
from pipeline.errors import ConfigError


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: list[tuple[str, str]] = []
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines()[2:]:
        match = re.match(r"([│ ]*)(├── |└── )?(\w+)", line)
        assert match, line
        depth = (len(match[1]) + len(match[2] or "")) // 4
        parents[depth:] = [match[3]]
        drawn.append((match[3], parents[depth - 1] if depth else "Exception"))
    classes = [
        (name, one.__bases__[0].__name__)
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, Exception)
    ]
    assert sorted(drawn) == sorted(classes)
    assert len(drawn) > 10


def test_a_configuration_error_holds_every_problem_and_says_it_on_a_line() -> None:
    problems = [Problem(Mark("a.yaml", 1), "one", "is wrong"), Problem(Mark("a.yaml", 2), "two", "is wrong too")]
    error = ConfigError(problems)
    assert error.problems == tuple(problems)
    assert str(error) == "a.yaml:1: one: is wrong\na.yaml:2: two: is wrong too"


def test_a_start_error_has_an_exit_code_that_a_service_manager_understands() -> None:
    assert StartError("a port is in use").exit_code == 69
    assert StartError("not ours", 73).exit_code == 73


def test_what_tells_a_client_to_come_again_says_when() -> None:
    limited = RateLimited(1000, 0.06)
    assert str(limited) == "Rate limit exceeded. Limit: 1000 requests/minute"
    assert (limited.limit, limited.retry_after) == (1000, 0.06)
    assert Overloaded("full").retry_after > 0
    assert Overloaded("full", 9).retry_after == 9
    assert Retryable("down").retry_after is None


@pytest.mark.parametrize("details", [(), [{"loc": ["body"]}]])
def test_an_invalid_request_keeps_its_details(details: list[dict[str, object]]) -> None:
    assert Invalid("wrong", details).details == tuple(details)
