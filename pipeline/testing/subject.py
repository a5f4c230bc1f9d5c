"""What a suite checks: one component type, and how it is configured."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NoReturn

import pytest
import yaml
from pydantic_core import to_jsonable_python

from pipeline import Batch, ComponentConfig, Declaration, Extension, Kind, Signal
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from pipeline.registry import BUILT_IN, Registry, load_registry
from pipeline.testing import frame
from pipeline.testing.doubles import event_batch, metric_batch


def fail(message: str, error: BaseException | None = None) -> NoReturn:
    """End the check; with the error that is the plugin's, its traceback is shown."""
    if error is None:
        pytest.fail(message, pytrace=False)
    raise pytest.fail.Exception(message) from error


def check(right: object, message: str) -> None:
    """Fail with that message unless it is right."""
    if not right:
        fail(message)


class Subject:
    """One component type of a plugin. A test class sets `plugin` and `type`, and overrides what its component needs."""

    kind: ClassVar[Kind]
    plugin: Any  # no ClassVar: mypy would refuse the module that a test class puts here
    """The module, or the object, with the hooks."""
    type: ClassVar[str]
    """The component's type, as it stands in a configuration."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The service runs on asyncio, so its components do."""
        return "asyncio"

    def options(self, folder: Path) -> Mapping[str, Any]:
        """The smallest options that work, as they would stand in YAML. What needs a place on disk gets it in `folder`."""
        return {}

    def extensions(self, folder: Path) -> Sequence[Extension[Any]]:
        """What its host offers. They are constructed by this, each time anew, and started and stopped around the component."""
        return ()

    def batches(self) -> Sequence[Batch]:
        """What it is handed: a sample of each signal that it takes."""
        samples: dict[Signal, Batch] = {Signal.EVENTS: event_batch(), Signal.METRICS: metric_batch()}
        return [samples[signal] for signal in sorted(self.declaration().takes)]

    def registry(self) -> Registry:
        """The built-in types and those of the plugin."""
        known = getattr(self.plugin, "__name__", None) in BUILT_IN
        try:
            return load_registry(installed=False, extra=[frame] if known else [frame, self.plugin])
        except Exception as error:
            fail(f"{self.plugin!r} cannot be loaded as a plugin: {type(error).__name__}: {error}", error)

    def declaration(self) -> Declaration:
        """What the plugin says of the type."""
        registry = self.registry()
        found = registry.declarations.get((self.kind, self.type))
        if found is None:
            listed = ", ".join(sorted(f"{kind} {each!r}" for kind, each in self._declared(registry))) or "nothing"
            fail(
                f"the plugin declares no {self.kind} {self.type!r}, but {listed}"
                " (return its Declaration from declare_components)"
            )
        return found

    def _declared(self, registry: Registry) -> list[tuple[Kind, str]]:
        return [key for key, source in registry.sources.items() if source not in (*BUILT_IN, frame.__name__)]

    def module(self) -> ModuleType:
        """The module with the hooks, or that of the object's class."""
        return self.plugin if isinstance(self.plugin, ModuleType) else sys.modules[type(self.plugin).__module__]

    def load(self, folder: Path, options: Mapping[str, Any]) -> Configuration:
        """The configuration that holds this component with these options, and little else, from a file of that folder.

        Raises `ConfigError`.
        """
        written = _written({f"{self.kind}s": {self.type: to_jsonable_python(options, fallback=str)}})
        around = folder / "frame.yaml"
        around.write_text(frame.YAML, encoding="utf-8")
        return self.load_yaml(folder, str(around), yaml.safe_dump(written, sort_keys=False))

    def load_yaml(self, folder: Path, below: str, text: str) -> Configuration:
        """The configuration that this text makes, laid over a file or over a configuration that is shipped.

        Raises `ConfigError`.
        """
        written = folder / "conformance.yaml"
        written.write_text(text, encoding="utf-8")
        return load_configuration([below, str(written)], [], {}, self.registry())

    def config(self, folder: Path) -> ComponentConfig:
        """The options of `options`, checked as the service checks them."""
        return self.load(folder, self.options(folder)).configured[self.kind, self.type].config

    def said(self, one: Any) -> str:
        """The docstring of a class or a module that is its own, not one that it inherits."""
        return vars(one).get("__doc__") or ""


def _written(value: Any) -> Any:
    """A value such that a configuration file means it as it is: `$` begins a substitution there."""
    if isinstance(value, dict):
        return {key: _written(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_written(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
