"""A short name for what a configuration means."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from pipeline.config.annotations import SECRETS
from pipeline.config.model import ComponentSpec, PipelineSpec, ServiceSettings

LENGTH = 12


def digest(components: Iterable[ComponentSpec], pipelines: Iterable[PipelineSpec], settings: ServiceSettings) -> str:
    """The first hexadecimal digits of a SHA-256 over all options, defaults included.

    Of a secret it says only whether it is there: whoever may see the digest, which is in the log and in the telemetry, could try
    out guesses against it.
    """
    meaning = [
        [[one.kind, one.id, one.config.model_dump()] for one in components],
        [asdict(pipeline) for pipeline in pipelines],
        settings.model_dump(),
    ]
    text = json.dumps(meaning, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any) -> Any:
    if isinstance(value, SECRETS):
        return bool(value.get_secret_value())
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
