"""How a job tells something to whoever reads its output: one JSON object a line, behind a mark."""

from __future__ import annotations

import json
from typing import Any

MARK = "@winnow "


def format_line(told: dict[str, Any]) -> str:
    return MARK + json.dumps(told)


def parse_line(line: str) -> dict[str, Any] | None:
    """The object in a line, whatever Ray wrote around it; None for every other line."""
    _, found, text = line.partition(MARK)
    if not found:
        return None
    try:
        told, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
