"""The page of the service's own metrics, from the instruments of the shipped configuration."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import ProcessCollector

from docs.markdown import NOTE, table
from pipeline import errors
from pipeline.config.load import load_configuration
from pipeline.counts import INTERNAL, reason_of
from pipeline.guard import guard_instruments
from pipeline.instruments import LastReload, engine_instruments
from pipeline.presence import Presence
from pipeline.registry import load_registry
from pipeline.service import Service
from pipeline.telemetry import Instrument
from pipeline.watchdog import Watchdog

HEADS = ["metric", "type", "labels", "meaning"]


def metrics() -> str:
    """Every metric that the service shows of itself, by who says it."""
    everything = {"OTEL_OTLP_ENDPOINT": "http://localhost:4318"}
    service = Service(load_configuration(["production"], [], everything, load_registry(installed=False)))
    reasons = [
        f"`{reason_of(each)}`" for each in vars(errors).values() if errors.Refusal in getattr(each, "__bases__", ())
    ]
    parts = [
        "# Metrics of the service itself",
        NOTE,
        "`GET :9465/metrics` shows them behind [the series of what was pushed](api.md#series), and the pipeline"
        " `metrics/telemetry` gives them on to [an OTLP collector](forwarding.md). Counters begin at 0 when the service"
        " starts. [Alerts](alerts.md) are made of them. `target_info` has what OpenTelemetry calls the"
        " resource: `service_name`, `service_version`, and an instance's id that is new with every start.",
        "## The engine",
        "A name is that of the OpenTelemetry Collector where the meaning is. The Collector has one for each signal; here an"
        " item is an event or a data point, whichever flows through the pipeline. `receiver` and `exporter` are the ids of"
        " components, connectors among them.",
        f"`reason` is one of {', '.join(reasons)}, `{reason_of(errors.TimedOut)}` (a component did not return by its deadline),"
        f" `{INTERNAL}` (a component failed), or what a plugin refuses by.",
        _instruments(
            [
                *engine_instruments(service.graph.pipelines, "", Watchdog(), LastReload(), service.graph.memory),
                *guard_instruments({}),
                *Presence(list, list).instruments(),
            ]
        ),
    ]
    for component in service.graph.components():
        if instruments := component.instruments():
            parts += [f"## {component.kind} {component.id}", _instruments(instruments)]
    parts += ["## The process", table(HEADS, list(_of_the_process()))]
    return "\n\n".join(parts) + "\n"


def _instruments(instruments: Iterable[Instrument]) -> str:
    rows = [
        [f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels) or "none", each.description]
        for each in instruments
    ]
    return table(HEADS, rows)


def _of_the_process() -> Iterable[list[str]]:
    for family in ProcessCollector(registry=None).collect():
        suffix = "_total" if family.type == "counter" else ""
        yield [f"`{family.name}{suffix}`", family.type, "none", family.documentation]
