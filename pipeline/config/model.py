"""A checked configuration: what the graph is built from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.component import Declaration, Kind
from pipeline.config.fields import ComponentConfig, ConfigModel, Duration, Size
from pipeline.config.source import MapNode
from pipeline.data import Signal
from pipeline.memory import DEFAULT_BUDGET, LEAST_BUDGET
from pipeline.registry import BrokenPlugin


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


class LogSettings(ConfigModel):
    """What the service's own log looks like."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    """The least severe records that are written; in any case."""
    format: Annotated[Literal["auto", "json", "text"], BeforeValidator(_lower)] = "auto"
    """One JSON object a line, or text for people; `auto` is text on a terminal."""


class PipelineOptions(ConfigModel):
    """The component ids of one pipeline."""

    receivers: tuple[str, ...] = ()
    """Receivers, and connectors that end another pipeline."""
    processors: tuple[str, ...] = ()
    """Processors, in the order in which they see data; a buffer comes last."""
    exporters: tuple[str, ...] = ()
    """Exporters, and connectors to another pipeline."""


class ServiceSettings(ConfigModel):
    """The section `service`: settings of the engine itself, and the graph as it is written."""

    name: str = Field("mcp-metrics-service", min_length=1, max_length=100)
    """What this service is called in the telemetry that it gives on (`service.name` of the resource)."""
    extensions: tuple[str, ...] = ()
    """The extensions that run, in the order in which they start."""
    pipelines: dict[str, PipelineOptions] = Field(default_factory=dict)
    """The pipelines, by `signal` or `signal/name`."""
    log: LogSettings = LogSettings()
    """What the service's own log looks like."""
    stop_timeout: Duration = 10.0
    """How long a stop waits for requests in hand before it cuts them off."""
    memory_budget: Size = Field(DEFAULT_BUDGET, ge=LEAST_BUDGET)
    """How much memory decoded data may take in total, in bytes: one quarter for bodies, one quarter for their events until these are
    stored, one eighth for the newest batches of the journals, the rest for deliveries."""
    drain_delay: Duration = 0.0
    """How long a stop serves on, no longer ready, before it takes no more requests: as long as it takes a load balancer to notice."""


@dataclass(frozen=True)
class ComponentSpec:
    """One configured component: `config` is an instance of the declaration's model."""

    kind: Kind
    id: str
    declaration: Declaration
    config: ComponentConfig
    third_party: bool = False
    """Whether its type comes from a package other than this service, or from a loose file."""


@dataclass(frozen=True)
class PipelineSpec:
    """One pipeline, by the ids of its enabled components. `receivers` and `exporters` may name connectors.

    Without receivers it still delivers what its journal holds.
    """

    id: str
    signal: Signal
    receivers: tuple[str, ...]
    processors: tuple[str, ...]
    exporters: tuple[str, ...]


@dataclass(frozen=True)
class Configuration:
    """All that is needed to construct the graph. `repr` shows no secret.

    `extensions` and `pipelines` are in the order in which they are to be built (pipelines: upstream first). `components`
    are those that the pipelines use, `configured` all that the files configure, used or not. `tree` is the YAML, merged
    and substituted. `digest` changes when the configuration means something else, but not with the value of a secret. `broken`
    are the plugins that had to be left out, and that nothing in it uses.
    """

    extensions: tuple[ComponentSpec, ...]
    components: Mapping[tuple[Kind, str], ComponentSpec]
    pipelines: tuple[PipelineSpec, ...]
    settings: ServiceSettings
    digest: str
    configured: Mapping[tuple[Kind, str], ComponentSpec] = field(repr=False)
    tree: MapNode = field(repr=False)
    environ: Mapping[str, str] = field(repr=False)
    broken: tuple[BrokenPlugin, ...] = ()
