"""Whose code a stack is in: the component that is at work there, and the line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from pipeline.component import Component

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Blame:
    """`component` is `kind/id`, or `unknown` where no component is at work; `place` is file, line and function."""

    component: str
    place: str


def blame(frames: Iterable[FrameType]) -> Blame:
    """The innermost method of a component among these frames, which come from the innermost outward; else the innermost."""
    innermost: FrameType | None = None
    for frame in frames:
        innermost = innermost or frame
        of = _self(frame)
        # By its type: asking an object what it is may run its code, and a watchdog asks from another thread.
        if issubclass(type(of), Component):
            # One that does not call `super().__init__` has no id.
            return Blame(f"{type(of).kind}/{vars(of).get('id', '?')}", _place(frame))
    return Blame(UNKNOWN, UNKNOWN if innermost is None else _place(innermost))


def blame_for(error: BaseException) -> Blame:
    """Who raised it."""
    return blame(reversed([frame for frame, _ in walk_tb(error.__traceback__)]))


def blame_of(frame: FrameType | None) -> Blame:
    """The component that runs in another thread, given the innermost frame of that thread."""
    try:
        return blame(_outward(frame))
    except Exception:  # the locals of other code may raise anything
        return Blame(UNKNOWN, "an unreadable place")


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _self(frame: FrameType) -> Any:
    code = frame.f_code
    # Asking a frame for its locals copies them.
    has_self = "self" in code.co_varnames or "self" in code.co_freevars
    return frame.f_locals.get("self") if has_self else None


def _place(frame: FrameType) -> str:
    """Without the folders of this machine, which are nobody's business."""
    file = "/".join(Path(frame.f_code.co_filename).parts[-2:])
    return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
