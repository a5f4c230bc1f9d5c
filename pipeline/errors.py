"""Every failure that crosses a wall of the service. They say what happened; what a protocol answers is its receiver's affair.

ServiceError
├── ConfigError          the configuration is wrong: every problem, each with its place
├── StartError           something outside the configuration prevents the start
├── Refusal              what a client asked is not done
│   ├── Unauthenticated     no key, or not a good one
│   ├── Forbidden           a good key without the scope
│   ├── RateLimited         over the key's limit
│   ├── Unsupported         a content type or encoding nobody here reads
│   ├── Malformed           not readable as what it claims to be
│   ├── Invalid             readable, and nothing in it could be accepted
│   ├── TooLarge            over a limit in bytes or items
│   ├── Conflict            an idempotency key that was used for something else
│   └── Overloaded          cannot be made durable now; the same request may succeed later
│       └── TimedOut            a component did not return by its deadline
├── StateError           saved state cannot be read or written now
│   └── StateLost           and what was saved before is gone
└── DeliveryError        an exporter did not take a delivery
    ├── Retryable           it may, later
    │   └── Blocked            once a person has mended something
    └── Permanent           it never will
        └── Oversized          but may take it in smaller pieces
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.masking import mask

if TYPE_CHECKING:
    from pipeline.config.problems import Problem


USER_MISTAKE = 2
"""The exit code that says that the user can mend it."""
MOST_TEXT = 1000
"""Characters of one error that are shown: a plugin may raise one that holds a whole batch."""


def in_a_line(value: object) -> str:
    """An error as `Type: text`, anything else as its `repr`: in one line, cut off after `MOST_TEXT` characters.

    Never raises, whatever the `__str__` of a plugin's object does.
    """
    if not isinstance(value, BaseException):
        return _shown(repr, value)
    name, text = type(value).__name__, text_of(value)
    return f"{name}: {text}" if text and text != name else name


def text_of(error: BaseException) -> str:
    """The text of an error in one line, cut off; the name of its type if it has none."""
    return _shown(str, error) or type(error).__name__


def _shown(show: Callable[[Any], str], value: Any) -> str:
    try:
        text = mask(show(value))  # before it is cut: the rest of a secret would not be recognized
        text = text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}… ({len(text)} characters)"
        return " ".join(text.split())
    except BaseException:
        return f"<a {type(value).__name__} that cannot be shown>"


class ServiceError(Exception):
    """The root of the tree above."""


class ConfigError(ServiceError):
    """The configuration cannot be used. `problems` holds all that is wrong with it, in the order of the files."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class StartError(ServiceError):
    """The service cannot start, for one reason that fits on one line.

    `exit_code` is what the process ends with, in the numbers of sysexits.h: 69 unavailable (a port in use), 70 software
    (a mistake in a component; the engine raises it), 73 cannot create (a folder that is not ours to write, data that
    another process holds), 78 configuration (a schema that is newer than the program).
    """

    def __init__(self, message: str, exit_code: int = 69) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Refusal(ServiceError):
    """A client's request is not carried out. The message is for that client."""


class Unauthenticated(Refusal):
    """Nobody we know is asking."""


class Forbidden(Refusal):
    """The caller is known and may not do this."""


class RateLimited(Refusal):
    """The caller's bucket is empty. `retry_after` is the time in seconds until it holds what was asked."""

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(f"Rate limit exceeded. Limit: {limit} requests/minute")
        self.limit = limit
        self.retry_after = retry_after


class Unsupported(Refusal):
    """The content type or the content encoding is not one that is read here."""


class Malformed(Refusal):
    """The body cannot be read as what it claims to be."""


class Invalid(Refusal):
    """The body was read, and nothing in it can be accepted.

    Either `details` names what is wrong with the document as a whole, as `{"type", "loc", "msg", "input"}` objects, or
    it is empty and the context of the request lists what is wrong with each item.
    """

    def __init__(self, message: str, details: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.details = tuple(details)


class TooLarge(Refusal):
    """The body is over a limit, in bytes or in items."""


class Conflict(Refusal):
    """The idempotency key was used before, with another body."""


class Overloaded(Refusal):
    """The request cannot be made durable now. `retry_after` is when to try again, in seconds."""

    def __init__(self, message: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TimedOut(Overloaded):
    """A component did not return by its deadline. Nothing of the request was stored."""


class StateError(ServiceError):
    """Saved state cannot be read or written now. Nothing has changed; the same call may succeed later."""


class StateLost(StateError):
    """The saved state was damaged and is set aside. The owner must save all of its state again."""


class DeliveryError(ServiceError):
    """An exporter did not take a delivery. Any other exception that `export` raises is treated as `Retryable`."""


class Retryable(DeliveryError):
    """The same delivery may succeed later. `retry_after` is the earliest time for that, in seconds, if the other side named one."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Blocked(Retryable):
    """Only a person can mend what keeps the exporter from delivering: a key, an address, a certificate. Nothing is given up
    meanwhile; it is tried again every `PROBE_SECONDS`, and `reason`, a word or two, is shown as what blocks it."""

    PROBE_SECONDS = 60.0

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, self.PROBE_SECONDS)
        self.reason = reason


class Permanent(DeliveryError):
    """This delivery will never succeed as it is.

    `items` names the items at fault, each as (position, index): `delivery.position(n)` for the batch number n of
    the delivery, and the index of the event or data point in that batch. These items become dead letters, and the rest of the delivery
    comes again with the same `after` and `upto`, so that an exporter which stores its cursor stays exactly-once. Items that the delivery
    does not hold are ignored.

    Without items the engine divides the delivery to find the items at fault. They become dead letters, and the rest is delivered. With
    `divide` false all of it becomes dead letters at once. For an exporter with `keeps_position`, the smallest part is a batch.
    """

    def __init__(self, message: str, *, divide: bool = True, items: Iterable[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.divide = divide
        self.items = tuple(items)


class Oversized(Permanent):
    """The delivery is too large for the other side. The engine halves it, as often as it takes."""
