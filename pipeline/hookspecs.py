"""The hooks of a plugin: the whole of what the service asks it for.

A plugin is a module, or any object, with functions marked `@hookimpl`. Hooks are synchronous, do no I/O and are called once,
when the plugins are loaded. `METRICS_SERVICE_API`, a number beside them, says which `API_VERSION` the plugin was made for; it
is 1 if that is missing. A plugin that was made for another is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from pipeline.component import Declaration

PROJECT = "metrics_service"

API_VERSION = 1
"""The version of what a plugin relies on: the package `pipeline` and these hooks. It changes when a plugin would have to."""

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
