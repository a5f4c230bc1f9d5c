"""The types that configuration models are made of. Plugins get them from `pipeline`."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

_SIZE_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_DURATION_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_size(value: Any) -> Any:
    """Bytes from `10MB` (10,000,000), `10MiB` (10,485,760) or a bare number."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not found or found[2].upper() not in _SIZE_UNITS:
        raise ValueError(f"must be a size, got {value!r} (for example 10MB, 10MiB or a number of bytes)")
    return int(Decimal(found[1]) * _SIZE_UNITS[found[2].upper()])


def parse_duration(value: Any) -> Any:
    """Seconds from `500ms`, `30s`, `5m`, `1h`, `90d` or a bare number."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value)
    if not found or found[2] not in _DURATION_UNITS:
        raise ValueError(f"must be a duration, got {value!r} (for example 30s, 5m or a number of seconds)")
    return float(found[1]) * _DURATION_UNITS[found[2]]


def parse_boolean(value: Any) -> Any:
    """true/false, yes/no, on/off, 1/0, in any case."""
    if isinstance(value, bool):
        return value
    found = _WORDS.get(str(value).strip().lower())
    if found is None:
        raise ValueError(f"must be a boolean, got {value!r} (true or false)")
    return found


def parse_list(value: Any) -> Any:
    """The parts of `a, b`, which is how a variable holds a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
"""A number of bytes."""

Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
"""A time in seconds."""

Boolean = Annotated[bool, BeforeValidator(parse_boolean)]

Secret = SecretStr
"""Text that shows as asterisks wherever it is printed; `get_secret_value()` gives it."""

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 takes a free one."""

_NETWORKS = {"type": "array", "items": {"type": "string", "format": "ipvanynetwork"}}

Networks = Annotated[
    tuple[IPvAnyNetwork, ...], BeforeValidator(parse_list), WithJsonSchema({"anyOf": [_NETWORKS, {"type": "string"}]})
]
"""IP addresses and networks, as a list or as text with commas."""


class ConfigModel(BaseModel):
    """A part of a configuration: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ComponentConfig(ConfigModel):
    """The options of a component. Subclasses add fields, each with its default and a docstring that is its documentation."""

    enabled: Boolean = True
    """A component that is not enabled is left out of the pipelines that name it."""


class ExporterConfig(ComponentConfig):
    """The options of an exporter that sends to somebody else, who may be away for long."""

    when_full: Literal["block", "drop_oldest"] = "block"
    """What happens when the journal is full of what waits for this exporter: `block` refuses pushes (503) until it works again,
    `drop_oldest` gives up the oldest of it, which is counted and logged."""


class TLSConfig(ConfigModel):
    """A certificate and its key, as PEM files. Both or none."""

    certificate: Path | None = None
    """The certificate chain, in PEM."""
    key: Path | None = None
    """The private key, in PEM."""

    @model_validator(mode="after")
    def _both_or_none(self) -> TLSConfig:
        if (self.certificate is None) != (self.key is None):
            there, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise ValueError(f"has a {there} and no {missing} (must have both or none)")
        return self


class ListenerConfig(ConfigModel):
    """Where and how to listen."""

    host: str = "0.0.0.0"  # noqa: S104 - the guide's default: METRICS_SERVICE_HOST
    """The address to bind."""
    port: Port
    """The TCP port to bind; 0 takes a free one."""
    server: Literal["hypercorn", "uvicorn"] = "hypercorn"
    """The HTTP server. `uvicorn` needs the extra `fast` and is several times faster on small requests."""
    tls: TLSConfig = TLSConfig()
    """Serve HTTPS with this certificate."""
    max_connections: int = Field(2048, ge=1)
    """How many connections may be open at once; one more is answered 503 and closed."""
    max_connections_per_address: int = Field(256, ge=1)
    """How many of them may come from one address, unless it is one of `trusted_proxies`."""
    trusted_proxies: Networks = ()
    """Addresses or networks of proxies in front of this, as a list or like `127.0.0.1, 10.0.0.0/8`. Who asks is then taken from their
    `X-Forwarded-For`, which is ignored from anybody else."""
