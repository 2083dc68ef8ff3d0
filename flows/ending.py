"""How a run ends that is told to: once is enough, and what follows is quiet.

Ctrl-C and SIGTERM are one thing to whoever runs: stages keep their checkpoints, servers of its own are stopped. That takes a
few seconds, in which another Ctrl-C would land in the middle of some library.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

GROUP = ("RANK", "WORLD_SIZE")  # by which torchrun tells a process its place
INSIST = 3  # so many Ctrl-C leave at once, whatever is left behind


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is Ctrl-C."""


def ranks() -> int:
    """Those of torchrun that this process is one of; 1 without it."""
    return _counted("WORLD_SIZE", 1)


def check_ranks() -> None:
    """Raise ValueError where the variables by which torchrun tells a process its rank do not fit together: what is left over
    of another program's would make this one a helper of nobody, which does nothing and says that all went well."""
    rank, size = _counted("RANK", 0), ranks()
    if not rank < size:
        raise ValueError(f"RANK {rank} should be below WORLD_SIZE {size}; start winnow by torchrun, or unset both")
    missing = [name for name in (*GROUP, "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if size > 1 and missing:
        raise ValueError(f"WORLD_SIZE is {size} and {missing[0]} is not set; start winnow by torchrun, or unset WORLD_SIZE")


def _counted(name: str, default: int) -> int:
    given = os.environ.get(name) or str(default)
    if not (given.isascii() and given.isdecimal()):
        raise ValueError(f"{name} should be a whole number, as torchrun sets it, got {given!r:.60}; unset it")
    return int(given)


def end_with_torchrun() -> None:
    """From now on a rank ends when the torchrun that started it is killed: it would go on, or wait for a rank that is gone,
    and hold its GPU. Nothing happens without torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from cluster.warm.copying import end_with_parent

        end_with_parent()


@dataclass
class Outcome:
    """How a flow's body ended, for whoever called it: Prefect tells that in its own way, and not at all once it is away."""

    summary: dict[str, Any] | None = None
    interruption: BaseException | None = None
    untold: bool = False  # Prefect was away at the end


OUTCOME: ContextVar[Outcome] = ContextVar("outcome")


@contextmanager
def ends_once(calmly: bool) -> Iterator[None]:
    """SIGTERM raises Terminated. With ``calmly`` the signals after the first are told that the end is under way; not in a
    debugger, where a person interrupts more than once."""
    told: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1 or not calmly:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if len(told) >= INSIST and number == signal.SIGINT:
            os._exit(130)
        print("\nwinnow: stopping, which takes some seconds", file=sys.stderr, flush=True)

    numbers = [signal.SIGTERM, *([signal.SIGINT] if calmly else [])]
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
