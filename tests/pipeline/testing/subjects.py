"""A good plugin of each kind, as text: tests spoil one thing in it and see who notices."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import ComponentConfig, Extension
from pipeline.testing import (
    Conformance,
    ConnectorConformance,
    ExporterConformance,
    ExtensionConformance,
    NopHost,
    ProcessorConformance,
    ReceiverConformance,
)

EXPORTER = '''"""Puts events on a shelf.

The smallest YAML that works:

    exporters:
      shelf:
        path: /tmp/shelf
"""

import asyncio
import os
import threading
import time

from pydantic import ConfigDict, Field, model_validator
from pipeline import *

OURS = []  # what is left here is for the test to close


class ShelfConfig(ComponentConfig):
    """Where the shelf is."""

    path: str
    """The file."""
    wait: Duration = 30.0
    """How long a delivery may take, in seconds."""
    token: Secret | None = None
    """What opens the shelf."""


class ShelfExporter(Exporter[ShelfConfig]):
    """Puts events on a shelf."""

    keeps_position = True

    def __init__(self, id, config, host):
        super().__init__(id, config, host)
        self.file = None
        self.adding = asyncio.Lock()
        self.places = {}

    async def start(self):
        """Open the file."""
        self.file = os.open(self.config.path, os.O_WRONLY | os.O_CREAT)
        OURS.append(self.file)
        self.host.spawn(self, self.tidy)

    async def stop(self):
        """Close it."""
        if self.file is not None:
            OURS.remove(self.file)
            os.close(self.file)
            self.file = None

    async def reload(self, config, host):
        """Whatever changes, the file stays open."""
        return lambda: None

    async def tidy(self):
        """Nothing to do."""
        await asyncio.Event().wait()

    async def position(self, pipeline, journal_id=""):
        return self.places.get(pipeline)

    async def export(self, delivery):
        async with self.adding:
            await asyncio.sleep(0)
            for batch in delivery.batches:
                os.write(self.file, b"x" * len(batch))
            await asyncio.sleep(0)
            self.places[delivery.pipeline] = delivery.upto


@hookimpl
def declare_components():
    return [Declaration("shelf", ShelfExporter, ShelfConfig, takes=frozenset({Signal.EVENTS}))]
'''

PROCESSOR = '''"""Reads words.

    processors:
      words:
"""

import asyncio

from pipeline import *


class Words(Decoder[ComponentConfig]):
    """Reads words, and lets events through."""

    async def admit(self, context):
        if context.credential == "not-a-key":
            raise Unauthenticated("no such key")

    async def decode(self, document, context):
        if document != b"word":
            raise Malformed("no word")
        return EventBatch("words", [Event("custom", 1.0, context.received_at)], context.received_at)

    async def process(self, batch, context):
        await asyncio.sleep(0)
        return batch


@hookimpl
def declare_components():
    return [Declaration("words", Words, ComponentConfig, takes=frozenset({Signal.EVENTS}))]
'''

OTHERS = '''"""The rest.

    receivers:
      rest:
    connectors:
      rest:
    extensions:
      rest:
"""

from pipeline import *


class RestReceiver(Receiver[ComponentConfig]):
    """Receives nothing."""


class RestConnector(Connector[ComponentConfig]):
    """Gives everything on."""

    async def export(self, delivery):
        for batch in delivery.batches:
            await self.chain.process(batch, Context(scope=None))


class RestExtension(Extension[ComponentConfig]):
    """Offers nothing."""


@hookimpl
def declare_components():
    events = frozenset({Signal.EVENTS})
    return [
        Declaration("rest", RestReceiver, ComponentConfig, gives=events),
        Declaration("rest", RestConnector, ComponentConfig, takes=events, gives=events),
        Declaration("rest", RestExtension, ComponentConfig),
    ]
'''


class Labels(Extension[ComponentConfig]):
    """What a component may ask for."""


class OfShelf(ExporterConformance):
    """An exporter that uses most of what an exporter may."""

    source = EXPORTER
    type = "shelf"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"path": folder / "shelf"}

    def extensions(self, folder: Path) -> Sequence[Extension[Any]]:
        return [Labels("labels", ComponentConfig(), NopHost())]


class OfWords(ProcessorConformance):
    """A processor, and a decoder."""

    source = PROCESSOR
    type = "words"

    def documents(self) -> Sequence[bytes]:
        return [b"word"]


class OfReceiver(ReceiverConformance):
    """A receiver."""

    source = OTHERS
    type = "rest"


class OfConnector(ConnectorConformance):
    """A connector."""

    source = OTHERS
    type = "rest"


class OfExtension(ExtensionConformance):
    """An extension."""

    source = OTHERS
    type = "rest"


Subjects = type[OfShelf] | type[OfWords] | type[OfReceiver] | type[OfConnector] | type[OfExtension]
GOOD: tuple[Subjects, ...] = (OfShelf, OfWords, OfReceiver, OfConnector, OfExtension)


def checks(suite: type[Conformance]) -> list[str]:
    """The names of the tests of a suite."""
    return [name for name in dir(suite) if name.startswith("test_")]


def make(suite: Subjects, folder: Path, source: str, module: str) -> Any:
    """The suite, about that plugin, which is imported from the folder."""
    (folder / f"{module}.py").write_text(source)
    importlib.invalidate_caches()
    sys.modules.pop(module, None)
    subject = suite()
    subject.plugin = importlib.import_module(module)
    return subject
