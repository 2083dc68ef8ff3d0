"""Whose turn it is: runs of a home that want the same cluster go a few at a time, in the order they came.

A run draws a ticket, a numbered file in the home, and keeps it locked for as long as it lives. The lock is the kernel's:
it falls when the process ends, however it ends, so a run that was killed is no longer ahead of anybody.
"""

from __future__ import annotations

import fcntl
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import IO

from cluster.lock import locked
from cluster.profile import Profile, home

POLL = 0.5  # seconds between looks at who is ahead


@dataclass(frozen=True)
class Ticket:
    """A run that has its turn or waits for it."""

    number: int
    name: str
    since: float

    def __str__(self) -> str:
        return f"{self.name} (since {datetime.fromtimestamp(self.since):%H:%M:%S})"


PLACES: ContextVar[Mapping[Path, Ticket]] = ContextVar("places", default=MappingProxyType({}))  # of this run, by queue


class Queue:
    """The runs of one home on one cluster. Any number of processes may hold one of these for the same directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def of(cls, profile: Profile) -> Queue:
        """The queue for the cluster that a profile names, or for this home's own."""
        pool = re.sub(r"[^A-Za-z0-9.]+", "-", profile.ray.address or "own").strip("-")
        return cls(home() / "queue" / pool)

    @classmethod
    def all(cls) -> list[Queue]:
        """Every queue of this home."""
        return [cls(directory) for directory in sorted((home() / "queue").glob("*"))]

    def tickets(self) -> list[Ticket]:
        """Everyone who lives, the first first."""
        with locked(self.directory / "lock"):
            return list(self._living())

    @contextmanager
    def turn(self, name: str, most: int, tell: Callable[[str], None]) -> Iterator[bool]:
        """Wait until fewer than ``most`` are ahead, and be among them; yields whether it had to wait. ``tell`` hears for whom
        it waits each time that changes."""
        with self.place(name) as ticket:
            told = ""
            while len(ahead := [other for other in self.tickets() if other.number < ticket.number]) >= most:
                if (text := f"waiting for {ahead[0]}, {len(ahead)} ahead") != told:
                    tell(text)
                    told = text
                time.sleep(POLL)
            yield bool(told)

    @contextmanager
    def place(self, name: str) -> Iterator[Ticket]:
        """A place in the queue, drawn before there is anything to do with it, such as to start servers: whoever of the same
        run asks for its turn meanwhile, has this one."""
        if (drawn := PLACES.get().get(self.directory)) is not None:
            yield drawn
            return
        ticket, file = self._draw(name)
        token = PLACES.set({**PLACES.get(), self.directory: ticket})
        try:
            yield ticket
        finally:
            PLACES.reset(token)
            self._path(ticket.number).unlink(missing_ok=True)
            file.close()

    def _draw(self, name: str) -> tuple[Ticket, IO[str]]:
        with locked(self.directory / "lock"):
            number = max((ticket.number for ticket in self._living()), default=0) + 1
            ticket = Ticket(number, name, time.time())
            file = self._path(number).open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump({"name": ticket.name, "since": ticket.since}, file)
            file.flush()
        return ticket, file

    def _living(self) -> Iterator[Ticket]:
        """Under the lock. Whose file can be locked has died, and is cleared away."""
        for path in sorted(self.directory.glob("*.ticket")):
            with suppress(FileNotFoundError), path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield Ticket(int(path.stem), **json.load(file))
                else:
                    path.unlink()

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.ticket"
