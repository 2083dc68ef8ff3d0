"""Provenance of an artifact: host, versions and commit it was made with; for people, never part of a key."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def environment(execution: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What a record keeps of it; ``told`` is what the submitter knows."""

    def of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:  # a GPU box without Ray runs stages in-process
            return "absent"

    packages = ("torch", "transformers", "deepspeed", "compressed-tensors", "ray")
    return {
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: of(name) for name in packages},
        "execution": execution,
        **told,
    }
