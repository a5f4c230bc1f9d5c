"""What is pushed: metrics as clients send them, with dimensions, a duration and a little metadata."""

from __future__ import annotations

import json
from typing import Any


def metric(number: int) -> dict[str, Any]:
    """One tool execution."""
    return {
        "type": "tool_execution",
        "value": 1.0,
        "duration_ms": 12.5 + number % 50,
        "timestamp": None,
        "dimensions": {
            "method": "tools/call",
            "server_name": f"server-{number % 7}",
            "tool_name": f"tool-{number % 13}",
            "client_name": "bench",
            "success": number % 10 != 0,
        },
        "metadata": {"error_code": None, "note": "a short note"},
    }


def body(metrics: int) -> bytes:
    """One push of that many metrics."""
    document = {"service": "bench", "version": "1.0.0", "metrics": [metric(number) for number in range(metrics)]}
    return json.dumps(document).encode()
