"""How a run ends that is told to: once is enough, and what follows is quiet.

Ctrl-C and SIGTERM are one thing to whoever runs: stages keep their checkpoints, servers of its own are stopped. That takes a
few seconds, in which another Ctrl-C would land in the middle of some library.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

GROUP = ("RANK", "WORLD_SIZE")  # by which torchrun tells a process its place
INSIST = 3  # so many Ctrl-C leave at once, whatever is left behind


class Terminated(BaseException):
    """SIGTERM, or the terminal that closed (SIGHUP), as KeyboardInterrupt is Ctrl-C."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.code = 128 + number


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
    """SIGTERM and SIGHUP raise Terminated. With ``calmly`` the signals after the first are told that the end is under way; not
    in a debugger, where a person interrupts more than once."""
    told: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1 or not calmly:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
        if len(told) >= INSIST and number == signal.SIGINT:
            os._exit(130)
        print("\nwinnow: stopping, which takes some seconds", file=sys.stderr, flush=True)

    with _heard(handle, (signal.SIGINT,) if calmly else ()):
        yield


@contextmanager
def ends_clean() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, in any command: what is half done goes on the way out, as after Ctrl-C. Not on
    ranks of torchrun: one that waits for another inside of torch hears of no signal that Python is to handle."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    with nullcontext() if "RANK" in os.environ else _heard(handle):
        yield


@contextmanager
def _heard(handle: Callable[[int, FrameType | None], None], others: Sequence[int] = ()) -> Iterator[None]:
    """What is ignored stays so: whoever starts a run by nohup wants it to outlive the terminal."""

    def hear(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        handle(number, frame)

    asked = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.signal(number, hear) for number in (*asked, *others)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_terminal() -> None:
    """Say nothing more to a terminal that closed: to write there fails, in the middle of what ends a run."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(nowhere, number)
    os.close(nowhere)
