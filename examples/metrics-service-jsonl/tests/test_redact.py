"""What the processor `redact` promises, and what it does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pipeline import Context, EventBatch
from pipeline.testing import NopHost, ProcessorConformance, event_batch

from metrics_service_jsonl import redact
from metrics_service_jsonl.redact import Redact, RedactConfig


class TestRedact(ProcessorConformance):
    """What the service relies on."""

    plugin = redact
    type = "redact"

    def options(self, folder: Path) -> Mapping[str, Any]:
        """One name."""
        return {"keys": ["password"]}


def redacted(metadata: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What is left of an event's metadata."""
    processor = Redact("redact", RedactConfig.model_validate(options), NopHost())
    batch = event_batch(1.0)
    event = batch.events[0].replace(metadata=metadata)
    processed = asyncio.run(processor.process(batch.replace(events=[event]), Context()))
    assert isinstance(processed, EventBatch)
    return processed.events[0].metadata


def test_the_values_of_names_are_replaced_in_any_case_at_any_depth() -> None:
    came = {"Password": "x", "user": "me", "deep": [{"password": {"old": "x"}, "kept": 1}], "none": None}
    assert redacted(came, keys=["password"]) == {
        "Password": "[redacted]",
        "user": "me",
        "deep": [{"password": "[redacted]", "kept": 1}],
        "none": None,
    }


def test_values_in_which_a_pattern_is_found_are_replaced() -> None:
    came = {"a": "call 555-1234 now", "b": "call me", "c": 5551234, "d": True, "e": ["555-1234"]}
    assert redacted(came, patterns=[r"555-?\d{4}"]) == {
        "a": "[redacted]",
        "b": "call me",
        "c": "[redacted]",
        "d": True,
        "e": ["[redacted]"],
    }


def test_dimensions_are_redacted_too() -> None:
    processor = Redact("redact", RedactConfig(keys=("method",)), NopHost())
    processed = asyncio.run(processor.process(event_batch(1.0), Context()))
    assert isinstance(processed, EventBatch)
    assert processed.events[0].dimensions == {"method": "[redacted]"}


def test_a_pattern_that_is_none_is_a_mistake_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="regular expression"):
        RedactConfig.model_validate({"patterns": ["("]})
    assert RedactConfig.model_validate({"patterns": ["a+"]}).patterns == (re.compile("a+"),)
