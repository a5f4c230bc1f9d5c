"""The configuration that is shipped, with the plugins that are."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pipeline import Secret
from pipeline.component import Kind
from pipeline.config.files import SHIPPED, shipped_folder
from pipeline.config.load import load_configuration
from pipeline.config.model import Configuration
from pipeline.registry import load_registry

REGISTRY = load_registry(installed=False)

GUIDE: dict[str, dict[str, Any]] = {
    "development": {
        "database.path": Path("dev_metrics.db"),
        "http.host": "127.0.0.1",
        "api_keys.rate_limit": 100,
        "batch.size": 10,
        "batch.flush_interval": 5,
    },
    "staging": {
        "database.path": Path("/var/lib/sqlite/staging_metrics.db"),
        "http.host": "0.0.0.0",  # noqa: S104 - a default, not a bind
        "api_keys.rate_limit": 1000,
        "batch.size": 100,
        "batch.flush_interval": 15,
    },
    "production": {
        "database.path": Path("/var/lib/sqlite/metrics.db"),
        "http.host": "0.0.0.0",  # noqa: S104 - a default, not a bind
        "api_keys.rate_limit": 5000,
        "batch.size": 500,
        "batch.flush_interval": 10,
    },
}
"""What the deployment guide says of each environment."""

EVERYWHERE: dict[str, Any] = {
    "http.port": 8890,
    "http.max_request_size": 10_000_000,
    "retention.days": 90,
    "prometheus.enabled": True,
    "prometheus.port": 9465,
    "series.max_label_length": 96,
    "series.max_label_cardinality": 150,
}

VARIABLES: dict[str, tuple[str, str, Any]] = {
    "SQLITE_DB_PATH": ("database.path", "/data/m.db", Path("/data/m.db")),
    "METRICS_SERVICE_HOST": ("http.host", "10.0.0.1", "10.0.0.1"),
    "METRICS_SERVICE_PORT": ("http.port", "9000", 9000),
    "METRICS_RATE_LIMIT": ("api_keys.rate_limit", "7", 7),
    "METRICS_RETENTION_DAYS": ("retention.days", "30", 30),
    "BATCH_SIZE": ("batch.size", "1000", 1000),
    "FLUSH_INTERVAL_SECONDS": ("batch.flush_interval", "1.5", 1.5),
    "MAX_REQUEST_SIZE": ("http.max_request_size", "1MiB", 2**20),
    "DB_CONNECTION_TIMEOUT": ("database.connection_timeout", "3s", 3),
    "METRICS_JOURNAL_DIR": ("batch.folder", "/journal", Path("/journal")),
    "METRICS_DATABASE_CREATE": ("database.create", "never", "never"),
    "METRICS_BACKUP_DIR": ("database.backups", "/backups", Path("/backups")),
    "METRICS_JOURNAL_RESERVE": ("batch.reserve", "32MiB", 2**25),
    "METRICS_SERVER": ("http.server", "uvicorn", "uvicorn"),
    "OTEL_PROMETHEUS_ENABLED": ("prometheus.enabled", "off", False),
    "OTEL_PROMETHEUS_PORT": ("prometheus.port", "9000", 9000),
    "METRICS_PROMETHEUS_KEY": ("prometheus.key", "hush" * 20, Secret("hush" * 20)),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("otlp.protocol", "grpc", "grpc"),
    "OTEL_EXPORTER_OTLP_COMPRESSION": ("otlp.compression", "none", "none"),
    "OTEL_EXPORTER_OTLP_TIMEOUT": ("otlp.timeout", "2500", 2.5),
    "OTEL_METRIC_EXPORT_INTERVAL": ("internal_telemetry.interval", "5000", 5),
    "METRICS_MAX_LABEL_LENGTH": ("series.max_label_length", "20", 20),
    "METRICS_MAX_LABEL_CARDINALITY": ("series.max_label_cardinality", "7", 7),
    "METRICS_TRUSTED_PROXIES": (
        "http.trusted_proxies",
        "127.0.0.1, 2001:db8::/32",
        (ip_network("127.0.0.1"), ip_network("2001:db8::/32")),
    ),
    "METRICS_ADMIN_KEY_FILE": ("api_keys.admin_key_file", "/run/key", Path("/run/key")),
}

COLLECTOR = {"OTEL_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


def load(name: str, **environ: str) -> Configuration:
    """One of the shipped configurations."""
    return load_configuration([name], [], environ, REGISTRY)


def option(configuration: Configuration, path: str) -> Any:
    """The option `type.name`."""
    type_, name = path.split(".")
    (config,) = [spec.config for (_, id_), spec in configuration.configured.items() if id_ == type_]
    return getattr(config, name)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_defaults_are_those_of_the_guide(name: str) -> None:
    found = load(name)
    expected = {**EVERYWHERE, **GUIDE[name]}
    assert {path: option(found, path) for path in expected} == expected


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("variable", VARIABLES)
def test_each_variable_sets_its_option_and_is_unset_when_empty(name: str, variable: str) -> None:
    path, text, value = VARIABLES[variable]
    assert option(load(name, **{variable: text}), path) == value
    assert option(load(name, **{variable: ""}), path) == option(load(name), path)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_listener_binds_where_metrics_service_host_says(name: str) -> None:
    found = load(name, METRICS_SERVICE_HOST="10.0.0.1")
    assert option(found, "http.host") == option(found, "prometheus.host") == "10.0.0.1"
    assert option(load(name), "http.host") == option(load(name), "prometheus.host")


def test_the_variables_of_tls_the_admin_key_the_log_and_the_name() -> None:
    environ = {"METRICS_TLS_CERTIFICATE": "c.pem", "METRICS_TLS_KEY": "k.pem", "METRICS_ADMIN_KEY": "hush" * 20}
    found = load("production", **environ, LOG_LEVEL="DEBUG", LOG_FORMAT="text", OTEL_SERVICE_NAME="mine")
    tls = option(found, "http.tls")
    assert (tls.certificate, tls.key) == (Path("c.pem"), Path("k.pem"))
    assert option(found, "api_keys.admin_key").get_secret_value() == "hush" * 20
    assert (found.settings.log.level, found.settings.log.format, found.settings.name) == ("debug", "text", "mine")
    assert load("production").settings.name == load("production", OTEL_SERVICE_NAME="").settings.name


def test_the_variable_of_the_drain_delay() -> None:
    assert load("production", METRICS_DRAIN_DELAY_SECONDS="5").settings.drain_delay == 5
    assert load("production", METRICS_DRAIN_DELAY_SECONDS="").settings.drain_delay == 0


def test_the_variables_of_a_collector() -> None:
    tls = {"OTEL_EXPORTER_OTLP_CERTIFICATE": "a.pem"}
    tls |= {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "c.pem", "OTEL_EXPORTER_OTLP_CLIENT_KEY": "k.pem"}
    found = load("production", **COLLECTOR, OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20abc", **tls)
    assert option(found, "otlp.endpoint") == COLLECTOR["OTEL_OTLP_ENDPOINT"]
    assert option(found, "otlp.headers").get_secret_value() == "authorization=Bearer%20abc"
    config = option(found, "otlp.tls")
    assert (config.ca, config.certificate, config.key) == (Path("a.pem"), Path("c.pem"), Path("k.pem"))
    assert option(found, "series.repeat_interval") == 60
    assert option(load("production"), "otlp.enabled") is False


@pytest.mark.parametrize("name", SHIPPED)
def test_a_collector_is_given_the_series_and_what_the_service_says_of_itself(name: str) -> None:
    _, metrics, telemetry = load(name, **COLLECTOR).pipelines
    assert (metrics.id, metrics.receivers, metrics.exporters) == ("metrics", ("series",), ("prometheus", "otlp"))
    assert (telemetry.id, telemetry.receivers) == ("metrics/telemetry", ("internal_telemetry",))
    assert (telemetry.processors, telemetry.exporters) == (("batch",), ("otlp",))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_graph_is_the_same_everywhere(name: str) -> None:
    found = load(name)
    events, metrics = found.pipelines
    assert (events.id, events.receivers, events.exporters) == ("events", ("http",), ("sqlite", "series"))
    assert events.processors == ("auth", "rate_limit", "validate", "batch")
    assert (metrics.id, metrics.receivers, metrics.exporters) == ("metrics", ("series",), ("prometheus",))
    assert metrics.processors == ("batch",)
    assert [spec.id for spec in found.extensions] == ["database", "api_keys", "retention"]
    assert (Kind.EXPORTER, "debug") in found.configured


def test_the_documentation_of_the_api_is_off_in_production_only() -> None:
    assert {name: option(load(name), "http.docs") for name in SHIPPED} == {
        "development": True,
        "staging": True,
        "production": False,
    }


def test_no_other_variable_is_read() -> None:
    texts = [path.read_text(encoding="utf-8") for path in shipped_folder().glob("*.yaml")]
    read = {name for text in texts for name in re.findall(r"\$\{env:(\w+)", text)}
    others = {
        "METRICS_TLS_CERTIFICATE",
        "METRICS_TLS_KEY",
        "METRICS_ADMIN_KEY",
        "METRICS_DRAIN_DELAY_SECONDS",
        "METRICS_MEMORY_BUDGET",
        "LOG_LEVEL",
        "LOG_FORMAT",
        "OTEL_SERVICE_NAME",
        "OTEL_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    }
    assert read == set(VARIABLES) | others
