"""Keeps what MLflow is to be told while it does not answer: a run computes for hours, and a server that tells of it may go.

In order, and told when MLflow answers again, at the latest before the run ends. What is not told then is not lost: it stands
in the artifacts, and the next run of the recipe tells it from there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.ray.events import Event
from cluster.reach import check_tracking
from cluster.store.artifacts import Record
from cluster.store.quarantine import warn
from cluster.tracking import next_try
from flows.chronicle import Chronicle, Status
from flows.conductor import Watcher
from flows.plan import Plan, Step

AGAIN = 5.0  # seconds between two tries, at least
SAID = 3.0  # seconds a server may take to answer before people are told what the run waits for
LAST_WAIT = 30.0  # seconds the end of a run waits for an MLflow that is away: a server that died is back by then


class Held(Watcher):
    """A chronicle that never fails a run."""

    def __init__(self, chronicle: Chronicle, uri: str) -> None:
        self.chronicle, self.uri = chronicle, uri
        self.kept: deque[Callable[[], None]] = deque()
        self.tried = self.again = 0.0
        self.lock = threading.RLock()  # every job in flight has a follower of its own

    def started(self, step: Step) -> None:
        self._tell(lambda: self.chronicle.started(step))

    def event(self, step: Step, event: Event) -> None:
        self._tell(lambda: self.chronicle.event(step, event))

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        self._tell(lambda: self.chronicle.finished(step, record, overhead))

    def failed(self, step: Step, error: Exception) -> None:
        self._tell(lambda: self.chronicle.failed(step, error))

    def stand_on(self, plan: Plan) -> None:
        self.chronicle.stand_on(plan)
        self._tell(self.chronicle.name_needed)

    def close(self, summary: Mapping[str, Any], status: Status) -> None:
        """Tell the rest, and wait a little for who is away."""
        self._tell(lambda: self.chronicle.close(summary, status), now=True)
        begun, most = time.monotonic(), LAST_WAIT if status == "FINISHED" else 0.0  # who stops a run wants it to stop
        while self.kept and time.monotonic() - begun < most:
            warn(f"waiting for MLflow at {self.uri} for {most:.0f} s at most")  # one line, however often it is asked
            time.sleep(1.0)
            self._tell_kept()
        if self.kept:
            warn(f"MLflow at {self.uri} was not told all; the same command tells it from what is made, and makes nothing again")

    def _tell(self, call: Callable[[], None], now: bool = False) -> None:
        with self.lock:
            self.kept.append(call)
            if now or len(self.kept) == 1 or time.monotonic() > self.again:
                self._tell_kept()

    def _tell_kept(self) -> None:
        with self.lock:
            away, begun = self.tried > 0.0, time.monotonic()
            try:
                with self._said_of():
                    if away:
                        self._look()  # quicker than its client where there is nobody
                    while self.kept:
                        self._tell_first()
            except ConnectionError as error:
                self.tried = time.monotonic()
                self.again = next_try(begun, AGAIN)
                if not away:
                    warn(f"{error}; the run goes on, and what it has to tell is kept")
                return
            if away:
                warn(f"MLflow at {self.uri} answers again, and knows all")
            self.tried = 0.0

    @contextmanager
    def _said_of(self) -> Iterator[None]:
        """One that hangs is told of while it does: its client gives up after some twenty seconds."""
        hangs = f"MLflow at {self.uri} does not answer; the run waits for it, and goes on without it if it stays silent"
        said = threading.Timer(SAID, warn, (hangs,))
        said.daemon = True
        said.start()
        try:
            yield
        finally:
            said.cancel()

    def _tell_first(self) -> None:
        """What fails for another reason than that MLflow is away, such as damage, is not told again."""
        call = self.kept.popleft()
        try:
            call()
        except ConnectionError:
            self.kept.appendleft(call)
            raise

    def _look(self) -> None:
        try:
            check_tracking(self.uri)
        except OSError as error:
            raise ConnectionError(str(error)) from None
