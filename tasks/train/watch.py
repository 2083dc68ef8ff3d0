"""A rank that hangs, dies or runs out of memory: one line that names rank, stage, step and what to change.

Each rank leaves a pulse in a folder that all see: the step it is in, when, and which line of code it stands at. A thread writes
it, so a rank that waits still has one, and a process that was stopped has none. Where no step ends for long the ranks wait for
each other; the first of those that live says who stands where, and all end, to be started again from the last checkpoint. What
is found there tells who died of what as well. Torchrun ends all ranks when one died, by SIGTERM: the first that lives says who.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

PULSES = "pulses"  # the folder, in a stage's scratch
HUNG = 86  # the exit code of a rank that ended itself
FIRST = 3  # times as patient with the first step, which compiles
LONGER = 10  # times the longest step so far: how slow one may be whatever the patience
_VERDICT = "verdict.txt"
_CLOSING = 2.0  # seconds that a process may be there yet whose connections are closed


class Watch:
    """Over one rank while it trains; ``stage`` is its address. ``remedy`` says what to change of the profile to save memory.

    A single rank waits for nobody and may stand in a debugger, so it is never taken to hang.
    """

    def __init__(
        self, directory: Path, stage: str, rank: int, ranks: int, steps: int, patience: float, remedy: Callable[[], str]
    ) -> None:
        self.directory, self.stage, self.rank, self.ranks, self.steps = directory, stage, rank, ranks, steps
        self.patience, self.remedy, self.every = patience, remedy, min(2.0, patience / 5)
        self.done, self.begun, self.longest = -1, time.monotonic(), 0.0
        self._ended = threading.Event()
        self._pipe: tuple[int, int] | None = None  # signals arrive here while the main thread waits in a collective
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._look_after, daemon=True)

    def __enter__(self) -> Watch:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / _VERDICT).unlink(missing_ok=True)
        if "TORCHELASTIC_RUN_ID" in os.environ and threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, lambda *_: None)
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and self._pipe and self._died(within=_CLOSING if isinstance(error, RuntimeError) else 0.0):
            self._stop()  # what was raised is that nobody answers
        self._ended.set()
        if self._pipe:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.write(self._pipe[1], b"\0")
        self._thread.join()
        for end in self._pipe or ():
            os.close(end)
        if error is not None and (where := out_of_memory(error)):
            raise ValueError(
                f"rank {self.rank} of {self.ranks} ran out of {where} memory in {self._step()} of {self.stage}; "
                f"{self.remedy()} in the profile"
            ) from error

    def step(self, done: int) -> None:
        """So many steps are finished."""
        now = time.monotonic()
        if self.done >= 0:
            self.longest = max(self.longest, now - self.begun)
        self.done, self.begun = done, now

    def _step(self) -> str:
        return f"step {max(0, self.done) + 1} of {self.steps}" if self.done >= 0 else "its first step"

    def _look_after(self) -> None:
        while True:
            self._leave_pulse()
            limit = max(self.patience * (FIRST if self.done < 0 else 1), LONGER * self.longest)
            if self.ranks > 1 and time.monotonic() - self.begun > limit and sys.gettrace() is None:
                self._give_up(limit)
            if self._pipe is None:
                self._ended.wait(self.every)
            elif select.select([self._pipe[0]], [], [], self.every)[0] and signal.SIGTERM in os.read(self._pipe[0], 64):
                self._stop()
            if self._ended.is_set():
                return

    def _leave_pulse(self) -> None:
        pulse = {"step": self._step(), "time": time.time(), "where": _place(sys._current_frames().get(self._main))}
        pulse |= {"host": os.uname().nodename, "pid": os.getpid()}
        half = self.directory / f".rank-{self.rank}"
        half.write_text(json.dumps(pulse))
        half.rename(self.directory / f"rank-{self.rank}.json")

    def _here(self) -> dict[int, dict[str, Any]]:
        """The pulses of this machine's ranks."""
        pulses = {rank: read_pulse(self.directory, rank) for rank in range(self.ranks)}
        return {rank: pulse for rank, pulse in pulses.items() if pulse and pulse["host"] == os.uname().nodename}

    def _died(self, within: float = 0.0) -> list[int]:
        """At once, or within so many seconds."""
        until = time.monotonic() + within
        while True:
            died = [rank for rank, pulse in self._here().items() if not _alive(pulse["pid"])]
            if died or time.monotonic() >= until:
                return died
            time.sleep(0.05)

    def _stop(self) -> None:
        """Say which rank of this machine died, or that none did, if no rank before this one can, and end."""
        here, died = self._here(), self._died()
        if self.rank == min(rank for rank in here if rank not in died):
            who = f"rank {died[0]} of {self.ranks} died in {here[died[0]]['step']}" if died else f"stopped in {self._step()}"
            killed = "; where no line says why, memory may have run out: lower micro_batch in the profile" if died else ""
            self._say(f"{who} of {self.stage}{killed}; run the same command to go on")
        os._exit(128 + signal.SIGTERM)

    def _give_up(self, limit: float) -> None:
        """Say who stands where, if no rank before this one can, and end."""
        pulses = {rank: read_pulse(self.directory, rank) for rank in range(self.ranks)}
        silent = [rank for rank, pulse in pulses.items() if pulse is None or time.time() - pulse["time"] > 5 * self.every]
        if self.rank == min(rank for rank in pulses if rank not in silent or rank == self.rank):
            stands = ", ".join(f"rank {rank} stands at {pulse['where']}" for rank, pulse in pulses.items() if pulse)
            still = ", ".join(f"rank {rank} is not heard of any more" for rank in silent)
            verdict = (
                f"no step for {limit:.0f} s in {self._step()} of {self.stage}: {still or stands}; where that is only slow, "
                "raise patience in the profile"
            )
            self._say(verdict)
        until = time.monotonic() + 5 * self.every
        while not (self.directory / _VERDICT).exists() and time.monotonic() < until:
            time.sleep(self.every / 10)  # one rank's end may be that of all
        os._exit(HUNG)

    def _say(self, verdict: str) -> None:
        """For all ranks, by whoever comes first: one that ends must not be taken for the one that died. In one piece, since
        torchrun writes to the same place."""
        with suppress(FileExistsError), (self.directory / _VERDICT).open("x") as file:
            file.write(verdict)
            sys.stderr.write(f"{verdict}\n")
            sys.stderr.flush()


def _alive(pid: int) -> bool:
    """A process that its parent has not asked after yet is none."""
    try:
        return "\nState:\tZ" not in Path("/proc", str(pid), "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_pulse(directory: Path, rank: int) -> dict[str, Any] | None:
    path = directory / f"rank-{rank}.json"
    return json.loads(path.read_text()) if path.exists() else None


def last_words(directory: Path, stage: str, rank: int) -> str:
    """Of a rank that is gone: what it was at, or what was said of all before they ended."""
    if (verdict := directory / _VERDICT).exists():
        return verdict.read_text()
    pulse = read_pulse(directory, rank)
    return f"in {pulse['step']} of {stage}" if pulse else f"before the first step of {stage}"


def out_of_memory(error: BaseException) -> str | None:
    """Whose memory was not enough, GPU or host; None for any other error."""
    import torch  # a job's driver reads pulses, and goes without

    if isinstance(error, torch.OutOfMemoryError):
        return "GPU"
    return "host" if isinstance(error, MemoryError) or "can't allocate memory" in str(error) else None


def _place(frame: FrameType | None) -> str:
    """File, line and function at which a thread stands."""
    if frame is None:
        return "its end"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
