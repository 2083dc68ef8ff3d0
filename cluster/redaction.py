"""Takes secrets out of a line before others see it: the values this process was given, and what looks like one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from cluster.ray.jobs import NOT_SECRET, SECRET

SHORTEST = 8  # characters: a shorter value may be any word
SHAPES = (
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+@"), r"\1***@"),  # the password of an address
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}\b"), "***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"), r"\1 ***"),
    (re.compile(rf"(?i)([\w-]*{SECRET.pattern}[\w-]*['\"]?\s*[=:]\s*['\"]?)[^\s'\",;]+"), r"\1***"),
)


class Redaction:
    """What is secret in ``environment``, as it was when this was made."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        secrets = {value for name, value in environment.items() if SECRET.search(name) and name not in NOT_SECRET}
        self.values = sorted((value for value in secrets if len(value) >= SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for value in self.values:
            text = text.replace(value, "***")
        for shape, instead in SHAPES:
            text = shape.sub(instead, text)
        return text
