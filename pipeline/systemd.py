"""What systemd is told: ready, stopping, reloading, how it goes, and that the process still works (`sd_notify(3)`).

Each is one datagram to the socket that `NOTIFY_SOCKET` names. Without that variable, outside of systemd, nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from pipeline.service import Service

STATUS_SECONDS = 10.0
"""How often the status is looked at, where no watchdog wants to hear of us more often."""
_SEND_SECONDS = 1.0
"""How long systemd's socket may be full."""

_log = logging.getLogger("systemd")


def notify(*lines: str) -> bool:
    """Send these assignments, like `READY=1`, in one datagram. Whether there is somebody who took them."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):  # others, vsock for one, are for virtual machines
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # in the abstract namespace of Linux
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(_SEND_SECONDS)
            sock.sendto("\n".join(" ".join(line.split("\n")) for line in lines).encode(), address)
    except OSError as error:
        _log.warning("cannot notify systemd of %s: %s", lines[0], error)
        return False
    return True


def say(service: Service, state: str) -> None:
    """What the service says of its state: `ready`, at the start and after every reload, `reloading`, `stopping`."""
    if state == "ready":
        notify("READY=1", f"STATUS={_status(service)}")
    elif state == "reloading":
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=reads its configuration again")
    elif state == "stopping":
        notify("STOPPING=1", "STATUS=answers what is in hand, and stops")


def watchdog_seconds() -> float | None:
    """How long systemd waits for a sign of life before it ends the process, in seconds; None if it does not wait for one.

    As `sd_watchdog_enabled(3)`: `WATCHDOG_USEC`, unless `WATCHDOG_PID` names another process.
    """
    given, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
    if not given.isdecimal() or int(given) == 0 or process not in (None, "", str(os.getpid())):
        return None
    return int(given) / 1e6


async def keep_informed(service: Service) -> None:
    """Give signs of life and the service's status, once it is ready, until cancelled.

    The signs come from the event loop, twice as often as systemd wants them. So a loop that hangs has the service started again; a full
    disk or a sink that is away has not. A thread or a task that has died ends the service by itself (`pipeline/supervision.py`).
    """
    await service.started.wait()
    patience = watchdog_seconds()
    await _repeat(service, patience is not None, STATUS_SECONDS if patience is None else patience / 2)


async def _repeat(service: Service, watched: bool, seconds: float) -> None:
    said = _status(service)
    while True:
        await anyio.sleep(seconds)
        status = _status(service)
        lines = ["WATCHDOG=1"] if watched else []
        if status != said and service.ready:
            lines.append(f"STATUS={status}")
        if lines and notify(*lines):
            said = status


def _status(service: Service) -> str:
    """One line for `systemctl status`."""
    health = service.health()
    wrong = "; ".join(f"{name}: {state}" for name, state in health.components.items() if state != "ok")
    accepts = "accepts pushes" if health.accepting else "refuses pushes"
    kept = "" if service.last_reload.successful else "; the last reload was refused, the log says why"
    return f"{accepts}{kept}; {wrong}" if wrong else f"{accepts}{kept}"
