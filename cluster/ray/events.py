"""What a job tells whoever reads its output: one JSON object a line, behind a mark."""

from __future__ import annotations

import json
from typing import Any

EVENT = "@winnow "


def format_event(event: dict[str, Any]) -> str:
    return EVENT + json.dumps(event)


def print_event(event: dict[str, Any]) -> None:
    print(format_event(event), flush=True)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event in a line, whatever Ray wrote before it; None for every other line."""
    _, found, text = line.partition(EVENT)
    if not found:
        return None
    try:
        event, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
