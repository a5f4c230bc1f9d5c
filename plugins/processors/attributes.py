"""Shapes the dimensions of events, or their metadata: sets, renames, drops and hashes entries.

It is named behind `validate` among the processors of a pipeline. The smallest YAML that works:

    processors:
      attributes:
        actions:
          - drop: [session_id]

A hash is deterministic, so what was hashed can still be counted and joined. Without `hash_key` it hides nothing that can be
guessed: whoever has a list of users can hash all of them and compare. What is set comes on top of the 20 dimensions that a
client may send.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from hashlib import sha256
from math import isfinite
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline import (
    Batch,
    Boolean,
    ComponentConfig,
    ConfigModel,
    Context,
    Declaration,
    Event,
    EventBatch,
    Host,
    Processor,
    Secret,
    Signal,
    hookimpl,
)

# What `validate` holds clients to (docs/api.md): what is behind relies on it.
MAX_ENTRIES = 20
MAX_NAME = 50
MAX_TEXT = 200

SHORTEST_KEY = 16

Entries = Mapping[str, Any]
Step = Callable[[Entries], Entries]
"""Gives what it was given if there is nothing to do, else another mapping: the events may be shared."""

_encode = msgspec.json.Encoder(order="deterministic").encode


def _storable(value: str | int | float | bool) -> str | int | float | bool:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"is {len(value)} characters long (must be at most {MAX_TEXT})")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"is {value} (must fit 64 bits)")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"is {value} (must be finite)")
    return value


Value = Annotated[str | int | float | bool, AfterValidator(_storable)]


class Action(ConfigModel):
    """One thing to do: exactly one of `set`, `rename`, `drop` and `hash`."""

    set: dict[str, Value] | None = Field(None, min_length=1, max_length=MAX_ENTRIES)
    """Entries to add, each text, a number or a boolean; one that is there already is replaced."""
    rename: dict[str, str] | None = Field(None, min_length=1)
    """New names by old ones. An entry that has the new name already is replaced; of several with one new name the last wins."""
    drop: tuple[str, ...] | None = Field(None, min_length=1)
    """Entries to leave out."""
    hash: tuple[str, ...] | None = Field(None, min_length=1)
    """Entries whose values are replaced by their hash; null stays null."""
    types: tuple[str, ...] | None = Field(None, min_length=1)
    """Only events of these types; by default all."""
    metadata: Boolean = False
    """Whether this is done to the metadata instead of the dimensions."""

    @model_validator(mode="after")
    def _one_thing(self) -> Action:
        things = {"set": self.set, "rename": self.rename, "drop": self.drop, "hash": self.hash}
        given = [name for name, thing in things.items() if thing is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'nothing to do'} (must have exactly one of {', '.join(things)})"
            )
        return self

    @model_validator(mode="after")
    def _names(self) -> Action:
        for names in (self.set, self.rename, (self.rename or {}).values(), self.drop, self.hash):
            for name in names or ():
                self._check(name)
        return self

    def _check(self, name: str) -> None:
        if not 1 <= len(name) <= MAX_NAME:
            raise ValueError(f"{name[:MAX_NAME]!r} is no name (must be 1 to {MAX_NAME} characters)")
        if not self.metadata and not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{name!r} is no name for a dimension (must match [A-Za-z_][A-Za-z0-9_]*)")


class AttributesConfig(ComponentConfig):
    """What to do, and how to hash."""

    actions: tuple[Action, ...]
    """What to do, in this order."""
    hash_key: Secret | None = None
    """The key of the hashes (HMAC-SHA256), of at least 16 characters. Without one they are plain SHA-256, and what can be guessed
    can be found out."""
    hash_length: int = Field(16, ge=8, le=64)
    """How long a hash is, in hexadecimal characters."""

    @field_validator("actions")
    @classmethod
    def _something_to_do(cls, actions: tuple[Action, ...]) -> tuple[Action, ...]:
        if not actions:
            raise ValueError("has no actions (must have at least one)")
        return actions

    @field_validator("hash_key")
    @classmethod
    def _not_guessable(cls, key: Secret | None) -> Secret | None:
        if key is not None and len(key.get_secret_value()) < SHORTEST_KEY:
            raise ValueError(f"is too short for a key (must be at least {SHORTEST_KEY} characters)")
        return key


class Attributes(Processor[AttributesConfig]):
    """Does its actions in order; each sets, renames, drops or hashes entries in the dimensions of events, or in their metadata."""

    def __init__(self, id: str, config: AttributesConfig, host: Host) -> None:
        super().__init__(id, config, host)
        digest = _digest(config)
        steps = [(action.types, action.metadata, _step(action, digest)) for action in config.actions]

        def of(type_: str | None) -> list[tuple[bool, Step]]:
            return [(on_metadata, step) for types, on_metadata, step in steps if types is None or type_ in types]

        self._steps = {type_: of(type_) for types, _, _ in steps for type_ in types or ()}
        self._other_steps = of(None)

    async def process(self, batch: Batch, context: Context) -> Batch:
        """See `Processor.process`."""
        assert isinstance(batch, EventBatch), "takes events only"
        return batch.replace(events=tuple([self._shape(event) for event in batch.events]))

    def _shape(self, event: Event) -> Event:
        dimensions: Entries = event.dimensions
        before: Entries | None = None
        metadata: Entries = {}
        for on_metadata, step in self._steps.get(event.type, self._other_steps):
            if not on_metadata:
                dimensions = step(dimensions)
                continue
            if before is None:  # decoded on demand
                before = metadata = event.metadata
            metadata = step(metadata)
        changed: dict[str, Entries] = {} if dimensions is event.dimensions else {"dimensions": dimensions}
        if before is not None and metadata is not before:
            changed["metadata"] = metadata
        return event.replace(**changed) if changed else event


def _step(action: Action, digest: Callable[[bytes], str]) -> Step:
    if action.set is not None:
        return partial(_set, action.set)
    if action.rename is not None:
        return partial(_rename, action.rename)
    if action.drop is not None:
        return partial(_drop, frozenset(action.drop))
    return partial(_hash, action.hash or (), digest)


def _set(added: Entries, entries: Entries) -> Entries:
    return {**entries, **added}


def _rename(names: Mapping[str, str], entries: Entries) -> Entries:
    if names.keys().isdisjoint(entries):
        return entries
    renamed = {new: entries[old] for old, new in names.items() if old in entries}
    return {**_drop(names.keys(), entries), **renamed}


def _drop(names: AbstractSet[str], entries: Entries) -> Entries:
    if names.isdisjoint(entries):
        return entries
    return {name: value for name, value in entries.items() if name not in names}


def _hash(names: Sequence[str], digest: Callable[[bytes], str], entries: Entries) -> Entries:
    hashed = {name: digest(_bytes(value)) for name in names if (value := entries.get(name)) is not None}
    return {**entries, **hashed} if hashed else entries


def _bytes(value: Any) -> bytes:
    """What is hashed: text as it is, anything else as JSON."""
    return value.encode() if isinstance(value, str) else _encode(value)


def _digest(config: AttributesConfig) -> Callable[[bytes], str]:
    length = config.hash_length
    if config.hash_key is None:
        return lambda value: sha256(value).hexdigest()[:length]
    key = config.hash_key.get_secret_value().encode()
    return lambda value: hmac.digest(key, value, "sha256").hex()[:length]


@hookimpl
def declare_components() -> Sequence[Declaration]:
    """Declares `attributes`."""
    return [Declaration("attributes", Attributes, AttributesConfig, takes=frozenset({Signal.EVENTS}))]
