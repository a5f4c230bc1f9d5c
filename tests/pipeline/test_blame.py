"""Who is at work in a stack: found without running anybody's code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from pipeline import ComponentConfig, Processor
from pipeline.blame import UNKNOWN, Blame, blame, blame_for
from pipeline.testing import NopHost


def here() -> list[FrameType]:
    """The stack of whoever calls, from the innermost frame outward."""

    def outward(frame: FrameType | None) -> Iterator[FrameType]:
        while frame is not None:
            yield frame
            frame = frame.f_back

    return list(outward(sys._getframe(1)))


def library(call: Callable[[], Any]) -> Any:
    """Code that is no component's."""
    return call()


class Working(Processor[ComponentConfig]):
    """Calls what it is given, in several ways."""

    def itself(self, call: Callable[[], Any]) -> Any:
        return call()

    def by_a_library(self, call: Callable[[], Any]) -> Any:
        return library(call)

    def by_a_function_of_its_own(self, call: Callable[[], Any]) -> Any:
        def inner() -> Any:
            self.log.debug("called")
            return call()

        return inner()


class Odd:
    """Is no component, and nobody may ask it what it is."""

    @property
    def __class__(self) -> Any:
        raise AssertionError("was asked")

    @__class__.setter
    def __class__(self, value: Any) -> None: ...

    def call(self, call: Callable[[], Any]) -> Any:
        return call()


def working(id: str = "working/one") -> Working:
    return Working(id, ComponentConfig(), NopHost())


def test_the_innermost_method_of_a_component_is_at_work() -> None:
    outer, inner = working("outer"), working("inner")
    found = blame(outer.itself(lambda: inner.by_a_library(here)))
    assert found.component == "processor/inner"
    assert found.place.startswith("pipeline/test_blame.py:")
    assert found.place.endswith(" by_a_library")


def test_a_function_inside_a_method_belongs_to_it() -> None:
    found = blame(working().by_a_function_of_its_own(here))
    assert found.component == "processor/working/one"
    assert found.place.endswith(" inner")


def test_an_object_that_is_no_component_is_not_asked() -> None:
    assert blame(working().itself(lambda: Odd().call(here))).component == "processor/working/one"


def test_without_a_component_it_is_the_innermost_line() -> None:
    found = blame(library(here))
    assert found.component == UNKNOWN
    assert found.place.endswith(" library")


def test_no_stack_is_nobodys() -> None:
    assert blame([]) == Blame(UNKNOWN, UNKNOWN)


def test_who_raised_is_who_was_at_work() -> None:
    def fail() -> None:
        raise ValueError("no")

    try:
        working().by_a_library(fail)
    except ValueError as error:
        found = blame_for(error)
    assert found.component == "processor/working/one"
    assert found.place.endswith(" by_a_library")
