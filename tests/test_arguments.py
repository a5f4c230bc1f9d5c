"""Nobody who lists the processes of the machine learns a secret: none is given as an argument."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from pipeline.cli import command_line
from pipeline.registry import load_registry
from tests.leaks import found
from tests.running import ADMIN_KEY, KEY, process


def parameters(command: click.Command, path: str = "") -> Iterator[str]:
    """Every option and argument of every command."""
    for parameter in command.params:
        yield f"{path} {parameter.name}".strip()
    for name, each in command.commands.items() if isinstance(command, click.Group) else ():
        yield from parameters(each, f"{path} {name}")


def secrets(command: click.Command) -> list[str]:
    """Those that sound as if they took a secret."""
    words = ("key", "secret", "token", "password", "header", "credential")
    return [each for each in parameters(command) if any(word in each.rpartition(" ")[2].lower() for word in words)]


def test_no_command_takes_a_secret() -> None:
    everything = command_line(load_registry())
    assert "keys rotate id" in set(parameters(everything)), "the commands of plugins are looked at"
    assert secrets(everything) == []


def test_a_command_that_takes_one_is_found() -> None:
    """The negative control."""
    assert secrets(click.Group("x", {"y": click.Command("y", params=[click.Option(["--api-key"])])})) == ["y api_key"]


def test_a_running_service_shows_none(tmp_path: Path) -> None:
    with process(tmp_path) as (running, _):
        arguments = Path(f"/proc/{running.pid}/cmdline").read_bytes()
        environ = Path(f"/proc/{running.pid}/environ").read_bytes()
    assert b"production" in arguments
    assert list(found(arguments, [KEY, ADMIN_KEY])) == []
    assert len(list(found(environ, [KEY, ADMIN_KEY]))) > 0, "the negative control: it has them from the environment"
