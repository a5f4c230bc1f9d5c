"""Where to send, how, and what to do when the other side refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from pipeline import Boolean, Duration, ExporterConfig, Secret, Size, TLSConfig

_METRICS = "/v1/metrics"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GRPC_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
_HOST = re.compile(r"[^\s%/\\]+")
_OURS = frozenset({"content-type", "content-encoding", "content-length", "host", "te", "transfer-encoding"})


def parse_headers(text: str) -> dict[str, str]:
    """`name=value,name=value`, values percent-encoded: the form of OTEL_EXPORTER_OTLP_HEADERS (W3C Baggage, without properties).

    Raises `ValueError`, which never quotes: a header is where the secret is.
    """
    headers = {}
    for number, pair in enumerate(filter(None, map(str.strip, text.split(","))), start=1):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"has no '=' in its pair number {number} (must be name=value,name=value)")
        headers[unquote(name).strip()] = unquote(value).strip()
    return headers


def _checked_headers(headers: Secret | dict[str, Secret]) -> Secret | dict[str, Secret]:
    for name, value in header_values(headers).items():
        if not _NAME.fullmatch(name):
            raise ValueError("has a name that is none of a header (must be letters, digits and -)")
        if name.lower() in _OURS:
            raise ValueError(f"has {name!r}, which the exporter sets itself (must be another)")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"has a value for {name!r} that no header may have (must be printable ASCII)")
    return headers


def header_values(headers: Secret | dict[str, Secret]) -> dict[str, str]:
    """The headers in clear, whichever way they were written."""
    if isinstance(headers, dict):
        return {name: value.get_secret_value() for name, value in headers.items()}
    return parse_headers(headers.get_secret_value())


Headers = Annotated[Secret | dict[str, Secret], AfterValidator(_checked_headers)]


def _checked_endpoint(endpoint: str) -> str:
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        raise ValueError("is no URL (for example https://collector.example.com:4318)") from None
    if "@" in endpoint:  # wherever it is: what is before it may be a password
        raise ValueError("must have no user name and no password in it (headers: can carry a credential)")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0 or not _HOST.fullmatch(url.hostname):
        raise ValueError(
            f"must be a URL of http or https, got {endpoint!r} (for example https://collector.example.com:4318)"
        )
    if "?" in endpoint or "#" in endpoint:
        raise ValueError(f"must end with its path, got {endpoint!r}")
    return endpoint.rstrip("/")


def is_proxy_url(text: str) -> bool:
    """Whether it is one of an HTTP proxy, which may hold a user name and a password."""
    try:
        url = urlsplit(text)
        return url.scheme == "http" and bool(url.hostname) and url.port != 0 and url.path in ("", "/")
    except ValueError:
        return False


def _checked_proxy(proxy: Secret) -> Secret:
    if not is_proxy_url(proxy.get_secret_value()):
        raise ValueError("is no URL of an HTTP proxy (must be like http://proxy.example.com:3128)")
    return proxy


class OtlpTLSConfig(TLSConfig):
    """Whom to trust, and who we are."""

    ca: Path | None = None
    """The certificates of the authorities to trust, in PEM; by default those of the system."""
    certificate: Path | None = None
    """The client's certificate chain, in PEM, for a collector that asks for one."""
    key: Path | None = None
    """The client's private key, in PEM."""


class OtlpConfig(ExporterConfig):
    """Where to send, how, and what to do when the other side refuses."""

    endpoint: Annotated[str, AfterValidator(_checked_endpoint)] | None
    """The collector's base URL, to which `/v1/metrics` is added unless it is there; for gRPC without a path. Empty: not enabled."""
    protocol: Literal["http/protobuf", "grpc"] = "http/protobuf"
    """OTLP over HTTP, or over gRPC; `http://` is without TLS in both."""
    headers: Headers = Field(default_factory=dict)
    """Headers of every request, a mapping, or `name=value,name=value` with percent-encoded values."""
    compression: Literal["gzip", "none"] = "gzip"
    """How requests are compressed."""
    timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """The longest that one request may take, in seconds."""
    tls: OtlpTLSConfig = OtlpTLSConfig()
    """Certificates, for an endpoint with `https://`."""
    proxy: Annotated[Secret, AfterValidator(_checked_proxy)] | None = None
    """The URL of an HTTP proxy, `http://host:port`; by default what the environment says (`HTTPS_PROXY`, `NO_PROXY`)."""
    max_items: int = Field(8192, ge=1)
    """How many data points or events one request holds at the most."""
    max_request_size: Size = Field(4_000_000, ge=1000)
    """How large one request may be, in bytes before compression; collectors take 4 MiB by gRPC unless configured otherwise."""
    on_auth_error: Literal["hold", "dead_letter"] = "hold"
    """What 401 and 403, and their like in gRPC, do: `hold` keeps everything and tries again every minute, `dead_letter` sets the data
    aside, as the letter of the specification asks."""
    bisect: Boolean = True
    """Whether data that the collector calls invalid is searched for the points at fault, so that the rest is delivered; else the whole
    request is set aside."""

    @model_validator(mode="before")
    @classmethod
    def _off_without_endpoint(cls, options: Any) -> Any:
        if isinstance(options, dict) and options.get("endpoint", "missing") in (None, ""):
            return {**options, "endpoint": None, "enabled": False}
        return options

    @model_validator(mode="after")
    def _fits_protocol(self) -> OtlpConfig:
        if self.endpoint and self.protocol == "grpc" and urlsplit(self.endpoint).path:
            raise ValueError(
                f"endpoint {self.endpoint!r} has a path (must have none for gRPC, for example https://host:4317)"
            )
        if self.protocol == "grpc":
            for name in header_values(self.headers):
                if not _GRPC_NAME.fullmatch(name.lower()):
                    raise ValueError(
                        f"headers has {name!r}, which gRPC cannot send (must be letters, digits, -, _ and ., without grpc- and -bin)"
                    )
        return self

    @property
    def url(self) -> str:
        """Where HTTP requests go."""
        endpoint = self.endpoint or ""
        return endpoint if endpoint.endswith(_METRICS) else endpoint + _METRICS
