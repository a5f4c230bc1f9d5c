"""Keeps some events and leaves out others, by type, service and dimensions.

It is named behind `validate` among the processors of a pipeline. What is left out is answered as accepted, and counted by
`processor_filtered_items_total`. The smallest YAML that works:

    processors:
      filter:
        drop:
          - types: [health_check]
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, model_validator

from pipeline import (
    Batch,
    ComponentConfig,
    ConfigModel,
    Context,
    Declaration,
    Event,
    EventBatch,
    Host,
    Processor,
    Signal,
    hookimpl,
)

Value = str | int | float | bool


class Rule(ConfigModel):
    """Which events: those that all parts of it match."""

    types: tuple[str, ...] | None = Field(None, min_length=1)
    """The event is of one of these types."""
    services: tuple[str, ...] | None = Field(None, min_length=1)
    """The sender calls itself one of these."""
    dimensions: dict[str, Value | tuple[Value, ...]] | None = Field(None, min_length=1)
    """The event has all of these dimensions, each with this value or one of those in a list: the number 200 is not the text "200"."""

    @model_validator(mode="after")
    def _has_a_part(self) -> Rule:
        if self.types is None and self.services is None and self.dimensions is None:
            raise ValueError("matches everything (must have at least one of types, services, dimensions)")
        for name, value in (self.dimensions or {}).items():
            if value == ():
                raise ValueError(f"dimensions.{name} has no value (must have at least one)")
        return self


class FilterConfig(ComponentConfig):
    """What to keep, and what of that to leave out."""

    keep: tuple[Rule, ...] = ()
    """Rules of which one must match, if there are any."""
    drop: tuple[Rule, ...] = ()
    """Rules of which none may match."""

    @model_validator(mode="after")
    def _has_a_rule(self) -> FilterConfig:
        if not self.keep and not self.drop:
            raise ValueError("has no rules (must have at least one in keep or drop)")
        return self


class Filter(Processor[FilterConfig]):
    """Keeps an event if there is no `keep` or one of its rules matches, and no rule of `drop` does."""

    def __init__(self, id: str, config: FilterConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._keep = [_Matcher(rule) for rule in config.keep]
        self._drop = [_Matcher(rule) for rule in config.drop]

    async def process(self, batch: Batch, context: Context) -> Batch:
        """See `Processor.process`."""
        assert isinstance(batch, EventBatch), "takes events only"
        events: Sequence[Event] = batch.events
        if self._keep:
            keep = [rule for rule in self._keep if rule.concerns(batch)]
            events = [event for event in events if any(rule.matches(event) for rule in keep)]
        if drop := [rule for rule in self._drop if rule.concerns(batch)]:
            events = [event for event in events if not any(rule.matches(event) for rule in drop)]
        return batch if len(events) == len(batch) else batch.replace(events=events)


class _Matcher:
    """A rule as it is asked: for each batch whether it concerns it, and then for each event."""

    def __init__(self, rule: Rule) -> None:
        self._types = None if rule.types is None else frozenset(rule.types)
        self._services = None if rule.services is None else frozenset(rule.services)
        self._dimensions = [
            (name, frozenset(map(_comparable, values if isinstance(values, tuple) else (values,))))
            for name, values in (rule.dimensions or {}).items()
        ]

    def concerns(self, batch: EventBatch) -> bool:
        return self._services is None or batch.service in self._services

    def matches(self, event: Event) -> bool:
        if self._types is not None and event.type not in self._types:
            return False
        dimensions = event.dimensions
        return all(_comparable(dimensions.get(name)) in values for name, values in self._dimensions)


def _comparable(value: Value | None) -> tuple[bool, Value | None]:
    """Python takes True for 1; JSON and those who write rules do not."""
    return isinstance(value, bool), value


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `filter`."""
    return [Declaration("filter", Filter, FilterConfig, takes=frozenset({Signal.EVENTS}))]
