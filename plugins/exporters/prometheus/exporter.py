"""The component: takes metrics at once, and shows the newest values to whoever scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from pydantic import Field, field_validator

from pipeline import (
    ComponentConfig,
    Delivery,
    Distribution,
    Duration,
    Exporter,
    Failures,
    Finding,
    Host,
    Instrument,
    InstrumentKind,
    Item,
    Level,
    ListenerConfig,
    MetricBatch,
    Permanent,
    Secret,
    Size,
)
from plugins.exporters.prometheus.exposition import Format, write
from plugins.exporters.prometheus.scrape import Renderings, ScrapeApp
from plugins.exporters.prometheus.store import Store

MINIMUM_LENGTH = 32
"""Characters; a shorter key works, with a warning (docs/decisions/0006-refused-or-warned.md)."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class PrometheusConfig(ListenerConfig, ComponentConfig):
    """Where to listen, who may scrape, and how much a scrape may be."""

    port: int = Field(9465, ge=0, le=65535)
    """The TCP port to bind; 0 takes a free one."""
    key: Secret | None = None
    """What a scrape must present, as `Authorization: Bearer` or `X-API-Key`; without it anybody may scrape who reaches the port."""
    max_failures: int = Field(default=20, ge=0)
    """How many wrong keys a minute one address may send before further ones are answered 429. The right key is still accepted. 0: any
    number."""
    max_bytes: Size = Field(32 * 2**20, ge=1024)
    """The most that the data may be in a scrape, in bytes, unpacked; series that come beyond it are set aside."""
    send_timeout: Duration = 10.0
    """How long a scraper may take to read its answer, in seconds."""

    @field_validator("key")
    @classmethod
    def _a_key_or_none(cls, key: Secret | None) -> Secret | None:
        if key is not None and not key.get_secret_value().strip():
            raise ValueError("is empty (must be a key, or left out so that anybody may scrape)")
        return key

    @property
    def has_weak_key(self) -> bool:
        """Whether the key is too short to be trusted."""
        return self.key is not None and len(self.key.get_secret_value()) < MINIMUM_LENGTH


class PrometheusExporter(Exporter[PrometheusConfig]):
    """Shows the newest value of every series, and the service's own telemetry, to Prometheus."""

    at_once = True

    def __init__(self, id: str, config: PrometheusConfig, host: Host) -> None:
        super().__init__(id, config, host)
        self._store = Store(host.service_name, config.max_bytes, self.log)
        self._seconds = Distribution(_SECONDS)
        renderings = Renderings(lambda: self.host.flush(into=self), self._write, self._seconds.record)
        self._app = ScrapeApp(renderings, _key(config), config.send_timeout, Failures(config.max_failures), self.log)

    async def start(self) -> None:
        """Listen. Raises `StartError` if the address cannot be had."""
        self._warn_of_a_weak_key(self.config)
        await self.host.listen(self, self.config, self._app)

    async def reload(self, config: PrometheusConfig, host: Host) -> Callable[[], None]:
        """The series stay, and so do the listener and its connections."""

        def apply() -> None:
            if config.key != self.config.key:
                self._warn_of_a_weak_key(config)
            if config.max_failures != self.config.max_failures:
                self._app.failures = Failures(config.max_failures)
            self._app.key, self._app.send_timeout = _key(config), config.send_timeout
            self._store.max_bytes = config.max_bytes

        return apply

    def _warn_of_a_weak_key(self, config: PrometheusConfig) -> None:
        if config.has_weak_key:
            self.log.warning(
                "exporters.%s.key is shorter than %d characters: it works, and it may be guessed",
                self.id,
                MINIMUM_LENGTH,
            )

    def findings(self) -> Iterable[Finding]:
        """Whether there is something to scrape, and for whom."""
        where, config = f"exporters.{self.id}", self.config
        if config.has_weak_key:
            what = f"has fewer than {MINIMUM_LENGTH} characters and can be guessed"
            yield Finding(Level.WARNING, Item.MONITORING, f"{where}.key", what, "openssl rand -base64 32")
        if config.key is not None or config.host in ("127.0.0.1", "::1", "localhost"):
            yield Finding(Level.OK, Item.MONITORING, where, f"port {config.port} can be scraped")
        else:
            what = f"everybody who reaches {config.host}:{config.port} can scrape"
            yield Finding(
                Level.WARNING, Item.MONITORING, where, what, "set key, or host to 127.0.0.1, or have a firewall"
            )

    async def _write(self, format: Format) -> Sequence[bytes]:
        return await write(self._store, self.host.telemetry(), format)

    async def export(self, delivery: Delivery) -> None:
        """Take the newest values. Raises `Permanent` if a batch is no OTLP."""
        for batch in delivery.batches:
            if isinstance(batch, MetricBatch):
                try:
                    request = ExportMetricsServiceRequest.FromString(batch.request)
                except DecodeError as error:
                    raise Permanent(f"it is no OTLP metrics request: {error}") from error
                await self._store.take(request)

    def instruments(self) -> Sequence[Instrument]:
        """How many series there are, how many are not shown and why, and the scrapes."""
        me = {"exporter": self.id}
        return [
            Instrument(
                "prometheus_series",
                InstrumentKind.GAUGE,
                "Series that a scrape shows.",
                ("exporter",),
                lambda: [(me, self._store.count)],
            ),
            Instrument(
                "prometheus_series_bytes",
                InstrumentKind.GAUGE,
                "Bytes that these series take in a scrape, at the most.",
                ("exporter",),
                lambda: [(me, self._store.size)],
            ),
            Instrument(
                "prometheus_set_aside_series_total",
                InstrumentKind.COUNTER,
                "Series that are not shown, by reason.",
                ("exporter", "reason"),
                lambda: [({**me, "reason": reason}, count) for reason, count in self._store.set_aside.items()],
            ),
            Instrument(
                "prometheus_scrapes_total",
                InstrumentKind.COUNTER,
                "Scrapes that were answered.",
                ("exporter",),
                lambda: [(me, self._app.scrapes)],
            ),
            Instrument(
                "prometheus_scrape_duration_seconds",
                InstrumentKind.HISTOGRAM,
                "Time that a scrape's content took to gather and to write.",
                ("exporter",),
                lambda: [(me, self._seconds)],
            ),
        ]


def _key(config: PrometheusConfig) -> str | None:
    return config.key.get_secret_value() if config.key is not None else None
