"""Workers in this process: what a stage starts to share its work where there is no cluster.

A worker is made from an import string and a payload, and asked for results by the names of its methods. Here it does at once
what it is asked for, so a stage is written once, and runs in a test or a debugger as it does on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any


class LocalWorker:
    """An object in this process behind the calls of one on a cluster."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def call(self, method: str, *arguments: Any) -> LocalResult:
        return LocalResult(getattr(self.worker, method)(*arguments))


class LocalResult:
    """What a call came to; it is there already."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def start_here(target: str, payloads: Iterable[dict[str, Any]]) -> list[Any]:
    """A worker ``module:Class(payload)`` per payload."""
    module, _, name = target.partition(":")
    make = getattr(import_module(module), name)
    return [LocalWorker(make(payload)) for payload in payloads]
