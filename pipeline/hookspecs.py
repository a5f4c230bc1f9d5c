"""The hooks of a plugin: the whole of what the service asks it for.

A plugin is a module, or any object, with functions marked `@hookimpl`. Hooks are synchronous, do no I/O and are called once,
when the plugins are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from pipeline.component import Declaration

PROJECT = "metrics_service"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def declare_components() -> Sequence[Declaration]:  # type: ignore[empty-body]
    """The component types that this plugin brings.

    An exception disables this plugin alone; it is reported, and stops the service only if the configuration uses it.
    """


@hookspec
def declare_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Subcommands for `metrics-service`. Each is given a `pipeline.cli.Invocation` as its click context's object."""
