"""Reloads of a service that runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from pipeline.registry import load_registry
from pipeline.testing import doubles
from tests.running import Running

EVENTS = "service.pipelines.events"


async def reload(service: Running, *overrides: str, plugins: Sequence[Any] = (doubles,), **variables: str) -> bool:
    """Load another configuration: the one of `running`, with these overrides and variables in place of those before."""
    environ = {**service.service.environ, **variables}

    def load() -> Configuration:
        registry = load_registry(extra=plugins)
        return load_configuration(["development"], ["receivers.http.port=0", *overrides], environ, registry)

    return await service.service.reload(load)


def component(service: Running, id: str) -> Any:
    """The component of that id."""
    (found,) = (each for each in service.service.graph.components() if each.id == id)
    return found
