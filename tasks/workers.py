"""Workers in this process: what a stage starts for data-parallel work where there is no cluster.

A worker is made from an import string and a payload, and asked for results by the names of its methods. Here it does at once
what it is asked for, so a stage is written once, and runs in a test or a debugger as it does on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Protocol


class Pending(Protocol):
    """What a worker was asked for and may not have finished."""

    def result(self) -> Any: ...


class Worker(Protocol):
    """An object made from a payload, here or on another machine; ``near`` where a GPU's tensors reach it without the host."""

    near: bool

    def call(self, method: str, *arguments: object) -> Pending: ...


class LocalWorker:
    """An object in this process behind the calls of one on a cluster."""

    near = True

    def __init__(self, worker: object) -> None:
        self.worker = worker

    def call(self, method: str, *arguments: object) -> LocalResult:
        return LocalResult(getattr(self.worker, method)(*arguments))


class LocalResult:
    """What a call came to; it is there already."""

    def __init__(self, value: object) -> None:
        self.value = value

    def result(self) -> Any:
        return self.value


def start_here(target: str, payloads: Iterable[Mapping[str, object]]) -> list[Worker]:
    """A worker ``module:Class(payload)`` per payload."""
    module, _, name = target.partition(":")
    make = getattr(import_module(module), name)
    return [LocalWorker(make(payload)) for payload in payloads]
