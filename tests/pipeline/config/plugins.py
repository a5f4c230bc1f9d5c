"""Component types to configure: one for each thing that a rule looks at. None of them does anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from pipeline import (
    Batch,
    Boolean,
    Buffer,
    Component,
    ComponentConfig,
    ConfigModel,
    Connector,
    Context,
    Declaration,
    Decoder,
    Duration,
    Exporter,
    Extension,
    Kind,
    ListenerConfig,
    Port,
    Processor,
    Receiver,
    Secret,
    Signal,
    Size,
)
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from pipeline.config.problems import Problem
from pipeline.errors import ConfigError
from pipeline.registry import BrokenPlugin, Registry

EVENTS, METRICS = Signal.EVENTS, Signal.METRICS


class Shelf:
    """An interface that an extension offers."""


class Empty(ComponentConfig):
    """No options."""


class HttpConfig(ComponentConfig, ListenerConfig):
    """A listener that is the component's whole configuration."""

    port: Port = 8890


class PushConfig(ComponentConfig):
    """A listener inside the configuration."""

    listener: ListenerConfig = ListenerConfig(port=0)


class Retry(ConfigModel):
    """A nested model."""

    attempts: int = 3
    wait: Duration = 1.0


class SendConfig(ComponentConfig):
    """One option of each sort."""

    endpoint: str
    token: Secret | None = None
    password: Secret = Secret("changeme")
    headers: Mapping[str, Secret] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    labels: frozenset[Annotated[str, Field(min_length=1)]] = frozenset()
    note: str = "default"
    folder: Path = Path("data")
    compression: Literal["none", "gzip"] = "none"
    limit: int | None = 7
    level: int | Literal["auto"] = "auto"
    size: Size = 1000
    timeout: Duration = 5.0
    verify: Boolean = True
    ratio: float = 0.5
    anything: Any = None
    retry: Retry = Retry()


class CarelessConfig(ComponentConfig):
    """Validators that say too much, or break."""

    password: Secret | None = None
    broken: str = ""

    @field_validator("password", mode="before")
    @classmethod
    def _password(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError(f"no good: {value!r}")
        return value

    @field_validator("broken")
    @classmethod
    def _broken(cls, value: str) -> str:
        raise KeyError(value)


class Http(Receiver[HttpConfig]):
    """Gives documents."""

    gives_documents = True


class Push(Receiver[PushConfig]):
    """Gives batches."""


class Admit(Processor[Empty]):
    """Looks at who asks."""


class Look(Processor[Empty]):
    """Looks at what is said."""

    async def process(self, batch: Batch, context: Context) -> Batch:
        """Nothing to do."""
        return batch


class Decode(Decoder[Empty]):
    """Decodes."""


class Keep(Buffer[Empty]):
    """Buffers."""


class Send(Exporter[SendConfig]):
    """Has options."""


class Careless(Exporter[CarelessConfig]):
    """Has bad validators."""


class Drop(Exporter[Empty]):
    """Has none."""


class Store(Exporter[Empty]):
    """Needs an extension."""

    requires = (Shelf,)


class Series(Connector[Empty]):
    """From events to metrics."""


class Loop(Connector[Empty]):
    """From anything to the same."""


class Read(Extension[Empty]):
    """Uses a shelf where there is one."""

    uses = (Shelf,)


class Wood(Extension[Empty], Shelf):
    """Offers a shelf."""


class Steel(Extension[Empty], Shelf):
    """Offers one too."""


class Index(Extension[Empty]):
    """Needs a shelf, and offers nothing."""

    requires = (Shelf,)


def _declare(type_: str, component: type[Component[Any]], config: type[ComponentConfig], *takes: Signal) -> Declaration:
    signals = frozenset(takes)
    if component.kind is Kind.RECEIVER:
        return Declaration(type_, component, config, gives=signals)
    return Declaration(type_, component, config, takes=signals)


DECLARATIONS = (
    _declare("http", Http, HttpConfig, EVENTS),
    _declare("push", Push, PushConfig, EVENTS, METRICS),
    _declare("admit", Admit, Empty, EVENTS, METRICS),
    _declare("look", Look, Empty, EVENTS, METRICS),
    _declare("decode", Decode, Empty, EVENTS),
    _declare("keep", Keep, Empty, EVENTS, METRICS),
    _declare("send", Send, SendConfig, EVENTS, METRICS),
    _declare("careless", Careless, CarelessConfig, EVENTS),
    _declare("drop", Drop, Empty, EVENTS, METRICS),
    _declare("store", Store, Empty, EVENTS),
    Declaration("series", Series, Empty, frozenset({EVENTS}), frozenset({METRICS})),
    Declaration("loop", Loop, Empty, frozenset(Signal), frozenset(Signal)),
    _declare("wood", Wood, Empty),
    _declare("steel", Steel, Empty),
    _declare("index", Index, Empty),
    _declare("read", Read, Empty),
)


def registry(*broken: BrokenPlugin) -> Registry:
    """All types of this module."""
    declarations = {(one.kind, one.type): one for one in DECLARATIONS}
    return Registry(declarations, dict.fromkeys(declarations, __name__), (), broken)


GRAPH = """
receivers: {push: }
processors: {keep: }
exporters: {drop: }
service:
  pipelines:
    events: {receivers: [push], processors: [keep], exporters: [drop]}
"""
"""The smallest configuration that is right; tests merge theirs over it."""


def load(
    folder: Path, *texts: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Configuration:
    """What these YAML texts, as the files `0.yaml`, `1.yaml`, … of the folder, come to."""
    files = []
    for number, text in enumerate(texts):
        path = folder / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        files.append(str(path))
    return load_configuration(files, overrides, environ or {}, registry())


def problems(
    folder: Path, *texts: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> list[str]:
    """What is wrong with them, one line each, without the folder's path."""
    try:
        load(folder, *texts, overrides=overrides, environ=environ)
    except ConfigError as error:
        return [shown(problem, folder) for problem in error.problems]
    return []


def shown(problem: Problem, folder: Path) -> str:
    """The problem's line, with its file relative to the folder."""
    return str(problem).replace(f"{folder}/", "")


def sent(folder: Path, options: str, **environ: str) -> SendConfig:
    """The options of the exporter `send` that this YAML flow mapping comes to."""
    text = f"exporters: {{send: {options}}}"
    found = load(folder, GRAPH, text, overrides=["service.pipelines.events.exporters=[send]"], environ=environ)
    config = next(spec.config for spec in found.components.values() if spec.id == "send")
    assert isinstance(config, SendConfig)
    return config
