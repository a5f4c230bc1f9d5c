"""Every built-in component type is held to what a plugin's is: by the suite that plugins' authors use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from pipeline import Component, ComponentConfig, Context, Extension, Kind
from pipeline.registry import load_registry
from pipeline.testing import (
    Conformance,
    ConnectorConformance,
    ExporterConformance,
    ExtensionConformance,
    NopHost,
    ProcessorConformance,
    ReceiverConformance,
)
from plugins.connectors import series
from plugins.exporters import debug, otlp, prometheus, sqlite
from plugins.extensions import api_keys, database, retention
from plugins.extensions.api_keys.extension import ApiKeys, ApiKeysConfig
from plugins.extensions.api_keys.keys import new_key
from plugins.processors import attributes, auth, batch, rate_limit, sample, validate
from plugins.processors import filter as filter_
from plugins.receivers import http, internal_telemetry
from tests.collector import Collector, grpc_collector, http_collector
from tests.plugins.extensions.databases import make_database
from tests.running import until

GOOD_DOCUMENT = b'{"service": "web", "metrics": [{"type": "custom", "value": 1}]}'


class OnDatabase:
    """For components that ask for the database, or for what it keeps."""

    def extensions(self, folder: Path) -> Sequence[Extension[Any]]:
        return [make_database(folder / "metrics.db")]


class TestHttp(ReceiverConformance):
    plugin = http
    type = "http"


class TestInternalTelemetry(ReceiverConformance):
    plugin = internal_telemetry
    type = "internal_telemetry"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"interval": 0.001}

    async def exercise(self, component: Component[Any]) -> None:
        """Let it hand over a few."""
        chain = component.chain  # type: ignore[attr-defined]
        await until(lambda: len(chain.batches) > 2)


class TestAuth(ProcessorConformance):
    plugin = auth
    type = "auth"

    def extensions(self, folder: Path) -> Sequence[Extension[Any]]:
        database = make_database(folder / "metrics.db")
        return [database, ApiKeys("api_keys", ApiKeysConfig(), NopHost(database))]

    def contexts(self) -> Sequence[Context]:
        # One that looks right is looked up in the database.
        return [*super().contexts(), Context(credential=new_key())]


class TestRateLimit(ProcessorConformance):
    plugin = rate_limit
    type = "rate_limit"


class TestValidate(ProcessorConformance):
    plugin = validate
    type = "validate"

    def documents(self) -> Sequence[bytes]:
        return [GOOD_DOCUMENT]


class TestAttributes(ProcessorConformance):
    plugin = attributes
    type = "attributes"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"actions": [{"drop": ["method"]}]}


class TestFilter(ProcessorConformance):
    plugin = filter_
    type = "filter"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"drop": [{"types": ["custom"]}]}


class TestSample(ProcessorConformance):
    plugin = sample
    type = "sample"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"percentage": 10}


class TestBatch(OnDatabase, ProcessorConformance):
    plugin = batch
    type = "batch"


class TestSqlite(OnDatabase, ExporterConformance):
    plugin = sqlite
    type = "sqlite"


class TestPrometheus(ExporterConformance):
    plugin = prometheus
    type = "prometheus"


class TestDebug(ExporterConformance):
    plugin = debug
    type = "debug"


class CollectorExtension(Extension[ComponentConfig]):
    """Not of the service: a collector that runs as long as what the component needs does."""

    def __init__(self, collecting: Callable[[], AbstractAsyncContextManager[Collector]]) -> None:
        super().__init__("collector", ComponentConfig(), NopHost())
        self.url = "http://127.0.0.1:4318"
        self._collecting = collecting
        self._running = AsyncExitStack()

    async def start(self) -> None:
        self.url = (await self._running.enter_async_context(self._collecting())).url

    async def stop(self) -> None:
        await self._running.aclose()


class TestOtlp(ExporterConformance):
    plugin = otlp
    type = "otlp"
    protocol = "http/protobuf"

    def collecting(self) -> AbstractAsyncContextManager[Collector]:
        """One that speaks the protocol."""
        return http_collector()

    @pytest.fixture(autouse=True)
    def _collector(self) -> None:
        self.collector = CollectorExtension(self.collecting)

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"endpoint": self.collector.url, "protocol": self.protocol}

    def extensions(self, folder: Path) -> Sequence[Extension[Any]]:
        return [self.collector]


class TestOtlpOverGrpc(TestOtlp):
    protocol = "grpc"

    def collecting(self) -> AbstractAsyncContextManager[Collector]:
        return grpc_collector()


class TestSeries(OnDatabase, ConnectorConformance):
    plugin = series
    type = "series"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"types": {"custom": {"counter": "custom_total", "labels": ["method"]}}}


class TestDatabase(ExtensionConformance):
    plugin = database
    type = "database"

    def options(self, folder: Path) -> Mapping[str, Any]:
        return {"path": folder / "metrics.db"}


class TestApiKeys(OnDatabase, ExtensionConformance):
    plugin = api_keys
    type = "api_keys"


class TestRetention(OnDatabase, ExtensionConformance):
    plugin = retention
    type = "retention"


def test_every_built_in_type_is_held_to_the_suite() -> None:
    held = {
        (one.kind, one.type)
        for one in globals().values()
        if isinstance(one, type) and issubclass(one, Conformance)
        if hasattr(one, "type")
    }
    missing = load_registry(installed=False).declarations.keys() - held
    assert not missing, "write a class for it above"


def test_there_is_a_suite_for_every_kind() -> None:
    suites = (
        ReceiverConformance,
        ProcessorConformance,
        ExporterConformance,
        ConnectorConformance,
        ExtensionConformance,
    )
    assert {suite.kind for suite in suites} == set(Kind)
