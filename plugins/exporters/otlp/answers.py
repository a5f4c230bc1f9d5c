"""What a collector's answers mean: one table for HTTP, one for gRPC, and nothing else that decides.

OTLP's specification (section "Failures") lets a client try again only what is marked as retryable. We follow it but for two kinds: what
only a person can mend holds the data rather than throwing it away, and what may be too large is sent in smaller pieces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import NamedTuple

from pipeline import Blocked, DeliveryError, Oversized, Permanent, Retryable

MOST_TEXT = 512
"""Characters of a collector's own words that are kept."""
LONGEST_RETRY_AFTER = 300.0


class Action(StrEnum):
    """What we do about an answer."""

    TAKEN = "taken"
    RETRY = "retry"
    HALVE = "halve"
    SEARCH = "search"
    HOLD = "hold"
    HOLD_CREDENTIAL = "hold_credential"
    SET_ASIDE = "set_aside"


class Answer(NamedTuple):
    """`status` is how the protocol calls it, `text` the collector's own words, `retry_after` in seconds."""

    action: Action
    status: str
    text: str = ""
    retry_after: float | None = None
    ambiguous: bool = False
    """Whether the collector may have taken it nevertheless, so that trying again may count it twice."""

    @property
    def message(self) -> str:
        """The answer in one line."""
        return f"{self.status}: {self.text}" if self.text else self.status

    def error(self, *, hold_credentials: bool, bisect: bool) -> DeliveryError | None:
        """What the engine is told; None if the request was taken."""
        match self.action:
            case Action.TAKEN:
                return None
            case Action.RETRY:
                return Retryable(self.message, self.retry_after)
            case Action.HALVE:
                return Oversized(self.message)
            case Action.SEARCH:
                return Permanent(self.message, divide=bisect)
            case Action.HOLD:
                return Blocked(self.message, _CAUSES.get(self.status, "address"))
            case Action.HOLD_CREDENTIAL if hold_credentials:
                return Blocked(self.message, "credential")
        return Permanent(self.message, divide=False)


_CAUSES = {
    "HTTP 415": "protocol",
    "UNIMPLEMENTED": "protocol",
    "HTTP 407": "proxy",
    "proxy": "proxy",
    "certificate": "certificate",
}

_HTTP = {
    400: Action.SEARCH,
    401: Action.HOLD_CREDENTIAL,
    403: Action.HOLD_CREDENTIAL,
    404: Action.HOLD,
    405: Action.HOLD,
    407: Action.HOLD,
    408: Action.RETRY,
    413: Action.HALVE,
    415: Action.HOLD,
    422: Action.SEARCH,
    429: Action.RETRY,
    502: Action.RETRY,
    503: Action.RETRY,
    504: Action.RETRY,
}
"""By status. Others from 200 to 299 are taken, from 300 to 399 hold (a redirect would carry the credential away), and the rest is set
aside. 408 is not in the specification's list: whoever sends it has not read the request."""

_GRPC = {
    "OK": Action.TAKEN,
    "CANCELLED": Action.RETRY,
    "DEADLINE_EXCEEDED": Action.RETRY,
    "ABORTED": Action.RETRY,
    "OUT_OF_RANGE": Action.RETRY,
    "UNAVAILABLE": Action.RETRY,
    "DATA_LOSS": Action.RETRY,
    "RESOURCE_EXHAUSTED": Action.RETRY,
    "INVALID_ARGUMENT": Action.SEARCH,
    "UNAUTHENTICATED": Action.HOLD_CREDENTIAL,
    "PERMISSION_DENIED": Action.HOLD_CREDENTIAL,
    "UNIMPLEMENTED": Action.HOLD,
}
"""By code; others are set aside. RESOURCE_EXHAUSTED without a time is not retryable to the letter; it is what 429 is in HTTP."""

_TOO_LARGE = re.compile(r"message\b.{0,40}\b(larger than|exceeds (the )?max|too large)")
"""What gRPC's implementations say of a message over their limit: C++ and Python, Go, Node; Java, .NET; Rust (OUT_OF_RANGE)."""
_NOT_TRUSTED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|is not in peer certificate|Hostname Verification|_ALERT_|Unwrap failed|WRONG_VERSION_NUMBER"
)
"""What gRPC's core says when TLS does not come about; "Unwrap failed" is an alert that came behind our handshake."""
_PROXY_SAID = re.compile(r"HTTP proxy returned response code (\d+)")
_NOT_CONNECTED = re.compile(r"failed to connect to all addresses|errors resolving")

_AMBIGUOUS = frozenset({"HTTP 408", "HTTP 502", "HTTP 504", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "ABORTED"})


def of_http(status: int, headers: Mapping[str, str], text: str, now: datetime | None = None) -> Answer:
    """What a status and its headers mean; `text` is what the body says."""
    action = _HTTP.get(status)
    if action is None:
        action = Action.TAKEN if 200 <= status < 300 else Action.HOLD if 300 <= status < 400 else Action.SET_ASIDE
    name = f"HTTP {status}"
    retry_after = parse_retry_after(headers.get("Retry-After"), now) if action is Action.RETRY else None
    return Answer(action, name, printable(text), retry_after, name in _AMBIGUOUS)


def of_grpc(code: str, text: str, retry_after: float | None = None) -> Answer:
    """What a status code means; `retry_after` is that of a `RetryInfo`, if there is one."""
    action, ambiguous = _GRPC.get(code, Action.SET_ASIDE), code in _AMBIGUOUS
    if code in ("RESOURCE_EXHAUSTED", "OUT_OF_RANGE") and retry_after is None and _TOO_LARGE.search(text):
        action = Action.HALVE
    if code == "UNAVAILABLE":
        # For gRPC all that comes before a connection is one code: the words are what tells it apart.
        if said := _PROXY_SAID.search(text):
            return of_proxy(int(said[1]), text)
        if _NOT_TRUSTED.search(text):
            return Answer(Action.HOLD, "certificate", printable(text))
        ambiguous = not _NOT_CONNECTED.search(text)
    waits = None if retry_after is None else max(0.0, min(retry_after, LONGEST_RETRY_AFTER))
    return Answer(action, code, printable(text), waits if action is Action.RETRY else None, ambiguous)


def of_proxy(status: int, text: str) -> Answer:
    """What it means that a proxy does not connect us. The collector has seen nothing, so whatever the status, nothing is given up."""
    later = status >= 500 or status in (408, 429)
    return Answer(Action.RETRY if later else Action.HOLD, "proxy", printable(text))


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from now, of a number or an HTTP date (RFC 9110, section 10.2.3), between 0 and `LONGEST_RETRY_AFTER`; None for anything
    else."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[-400:]), LONGEST_RETRY_AFTER)
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, OverflowError, IndexError):  # the others of days and zones that no calendar has
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, min((then - (now or datetime.now(UTC))).total_seconds(), LONGEST_RETRY_AFTER))


def printable(text: str) -> str:
    """At the most `MOST_TEXT` characters on one line, with what would move a cursor escaped."""
    short = " ".join(text[: 4 * MOST_TEXT].split())[:MOST_TEXT]
    shown = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in short)
    return "".join(shown)[:MOST_TEXT]
