"""What a command of `metrics-service` was called with, and what it can get from that."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.command_host import CommandHost
from pipeline.component import Extension
from pipeline.config.fields import ComponentConfig
from pipeline.config.load import load_configuration, read_env_file
from pipeline.config.model import Configuration
from pipeline.errors import USER_MISTAKE, StartError
from pipeline.registry import Registry, load_registry


@dataclass
class Invocation:
    """What every command was called with. Commands that plugins bring find it as their click context's object."""

    config: Sequence[str] = ()
    overrides: Sequence[str] = ()
    env_file: Path | None = None
    plugins_dir: Path | None = None

    @cached_property
    def registry(self) -> Registry:
        """The component types that there are."""
        return load_registry(self.plugins_dir)

    @cached_property
    def environ(self) -> dict[str, str]:
        """The environment; what is set in it wins over the `--env-file`. An empty variable counts as unset."""
        return self._read_environ()

    def _read_environ(self) -> dict[str, str]:
        from_file = read_env_file(self.env_file) if self.env_file else {}
        return {**os.environ, **from_file, **{name: value for name, value in os.environ.items() if value}}

    def load(self) -> Configuration:
        """The configuration, checked. Raises `ConfigError` with all that is wrong with it."""
        return load_configuration(self.config, self.overrides, self.environ, self.registry)

    def load_again(self) -> Configuration:
        """The same, from what the files hold now, the `--env-file` too. Raises `ConfigError`."""
        return load_configuration(self.config, self.overrides, self._read_environ(), self.registry)

    def config_of(self, component: type[Extension[Any]]) -> ComponentConfig:
        """The options of the configured extension of that class. Raises `StartError` if there is none."""
        for spec in self.load().extensions:
            if issubclass(spec.declaration.component, component):
                return spec.config
        types = (each for each in self.registry.declarations.values() if issubclass(each.component, component))
        named = " or ".join(sorted(repr(each.type) for each in types)) or component.__name__
        raise StartError(f"the configuration has no extension of the type {named} (add one)", USER_MISTAKE)

    def constructed(self) -> CommandHost:
        """The configured extensions, not started: for a look at what they are about to use. Nothing is made or opened."""
        return CommandHost(self.load())

    @asynccontextmanager
    async def extensions(self) -> AsyncIterator[CommandHost]:
        """The configured extensions, started for a command that may run beside the service."""
        host = self.constructed()
        try:
            await host.start()
            yield host
        finally:
            await host.stop()
