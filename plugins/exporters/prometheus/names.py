"""OTLP's names, attributes and values as Prometheus has them.

By the specification "Prometheus and OpenMetrics Compatibility" of OpenTelemetry, with underscores for what Prometheus' classic names
do not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

MAX_NAME = 256
MAX_HELP = 1024

_UNITS = {
    "d": "days",
    "h": "hours",
    "min": "minutes",
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "GiBy": "gibibytes",
    "KBy": "kilobytes",
    "MBy": "megabytes",
    "GBy": "gigabytes",
    "%": "percent",
}
_NOT_IN_METRIC = re.compile(r"[^a-zA-Z0-9_:]")
_NOT_IN_LABEL = re.compile(r"[^a-zA-Z0-9_]")
_ESCAPED = {ord("\\"): "\\\\", ord("\n"): "\\n"}
# What some reader of lines takes for the end of one, or a terminal for a command.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029, *range(0xD800, 0xE000)), "\ufffd")
_IN_VALUE = {**_CONTROLS, **_ESCAPED, ord('"'): '\\"'}
_IN_HELP = {**_CONTROLS, **_ESCAPED}


def metric_name(name: str, unit: str, *, counter: bool) -> str | None:
    """The name of a metric, with its unit and a counter's `_total`; None if there is none, or it is too long."""
    cleaned = _NOT_IN_METRIC.sub("_", name)
    if not cleaned:
        return None
    if cleaned[0].isdigit():
        cleaned = f"_{cleaned}"
    suffix = f"_{_UNITS[unit]}" if unit in _UNITS else ""
    base = cleaned.removesuffix("_total") if counter else cleaned
    if suffix and not base.endswith(suffix):
        base += suffix
    full = f"{base}_total" if counter else base
    return full if base and len(full) <= MAX_NAME else None


def label_name(key: str, reserved: str | None) -> str:
    """The name of a label. `reserved` is one that the format itself gives to such samples: `le`, `quantile`."""
    cleaned = _NOT_IN_LABEL.sub("_", key) or "_"
    if cleaned[0].isdigit():
        cleaned = f"_{cleaned}"
    if cleaned.startswith("__"):  # reserved for Prometheus itself, `__name__` among them
        cleaned = f"_{cleaned.lstrip('_')}"
    return f"exported_{cleaned}" if cleaned == reserved else cleaned


def label_value(value: Any) -> str:
    """An attribute's value (an OTLP `AnyValue`) as text: strings as they are, the rest as JSON."""
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    if kind == "string_value":
        return str(value.string_value)
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind in ("int_value", "double_value"):
        return str(getattr(value, kind))
    return msgspec.json.encode(_plain(value)).decode()


def _plain(value: Any) -> Any:
    """An attribute's value as JSON has it; bytes as base64."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: _plain(each.value) for each in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def label_text(attributes: Iterable[tuple[str, str]], reserved: str | None) -> tuple[str, int]:
    """What stands between the braces of a sample, the same for the same labels, and how many labels that are.

    Empty values are left out, since to Prometheus they are none. Values of attributes that become one label are joined with `;`.
    """
    labels: dict[str, str] = {}
    for key, value in sorted(attributes):
        name = label_name(key, reserved)
        labels[name] = f"{labels[name]};{value}" if name in labels else value
    shown = [f'{name}="{value.translate(_IN_VALUE)}"' for name, value in sorted(labels.items()) if value]
    return ",".join(shown), len(shown)


def help_text(description: str, *, openmetrics: bool) -> str:
    """A description as `# HELP` shows it."""
    text = description[:MAX_HELP].translate(_IN_HELP)
    return text.replace('"', '\\"') if openmetrics else text
