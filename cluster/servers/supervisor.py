"""Starts again what dies of the servers of a home, on the same ports, and settles the flow runs that nobody owns.

`winnow up` leaves one such process behind; a run with servers of its own supervises them from a thread. Any number may
look after one home: each round is done by whoever holds the home's lock. What keeps dying is tried ever more rarely.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster.lock import locked_now
from cluster.servers.embedded import LAUNCHES, Server, healthy
from cluster.servers.services import Services
from cluster.servers.settle import Settler
from cluster.servers.state import State

ROUND = 0.5  # seconds between looks
SETTLE = 10.0  # seconds between looks at flow runs
STEADY = 120.0  # seconds a server has to live for its next death to count as the first
LONGEST = 60.0  # seconds between two tries at most


class Supervisor:
    """`say` is told of every death and every return, a line each."""

    def __init__(self, services: Services, say: Callable[[str], None]) -> None:
        self.services, self.say = services, say
        self.awaited: set[str] = set()
        self.settler = Settler(services.home, say)
        self.settled = 0.0

    def tend(self) -> bool:
        """One round; False when this home has no servers any more."""
        with locked_now(self.services.home / "services.lock") as mine:
            if not mine:
                return True
            state = self.services.state = self.services.load()
            if state is None:
                return False
            for kind, server in list(state.servers.items()):
                if kind != "supervisor" and not server.process.alive:
                    self._revive(state, kind, server)
        self._greet(state)
        if time.monotonic() - self.settled > SETTLE:
            self.settled = time.monotonic()
            self.settler.settle(state)
        return True

    def _revive(self, state: State, kind: str, server: Server) -> None:
        """Start a dead server again: at once the first time, later after a while."""
        now = time.time()
        if not server.died:
            steady = server.process.age > STEADY
            server = server.model_copy(update={"died": now, "streak": 1 if steady else server.streak + 1})
            state.servers[kind] = server
            self.services.save()
            self.say(died(kind, server))
        if now < server.died + pause(server):
            return
        self.services.clear(kind)
        counted: dict[str, float] = {"restarts": server.restarts + 1, "streak": server.streak}
        try:
            self.services.spawn(kind)
        except OSError as error:  # a port taken, a disk full: told, and tried again later
            self.say(f"{kind} cannot be started again: {error}")
            counted = {"died": now, "streak": server.streak + 1}
        self.awaited.add(kind)
        state.servers[kind] = state.servers[kind].model_copy(update=counted)
        self.services.save()

    def _greet(self, state: State) -> None:
        for kind in list(self.awaited):
            server = state.servers.get(kind)
            if server and server.process.alive and healthy(kind, server, timeout=1.0):
                self.awaited.discard(kind)
                self.say(f"{kind} answers again")


def pause(server: Server) -> float:
    """Seconds from a death to the next start."""
    return 0.0 if server.streak <= 1 else min(LONGEST, 2.0**server.streak)


def died(kind: str, server: Server) -> str:
    """One line; a new start keeps the log of the last under another name."""
    seconds = pause(server)
    when = f" in {seconds:.0f} s" if seconds else ""
    return f"{kind} has died and is started again{when}; what it wrote is in {Path(server.log).with_suffix('.previous.log')}"


class Watch:
    """For as long as a run lasts: supervises servers of its own, and tells of those of others what becomes of them."""

    def __init__(self, services: Services, say: Callable[[str], None]) -> None:
        self.services, self.say = Services(services.home), say
        self.supervisor = Supervisor(self.services, say)
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _run(self) -> None:
        told: dict[str, int] = {}  # the pid of each server, 0 once its death is told
        while not self.over.wait(ROUND):
            state = self.services.load()
            if state and state.mode == "embedded":
                self.supervisor.tend()
            elif state:
                self._tell(state, told)

    def _tell(self, state: State, told: dict[str, int]) -> None:
        """The supervisor may be faster than this looks: another process is as good a sign of a death as none."""
        keeper = state.servers.get("supervisor")
        for kind in LAUNCHES.keys() & state.servers.keys():
            server = state.servers[kind]
            now = server.process.pid if server.process.alive else 0
            if (before := told.get(kind, server.process.pid)) and now != before:
                lost = f"{kind} has died, and nobody starts it again; winnow up does"
                self.say(died(kind, server) if now or keeper and keeper.process.alive else lost)
            told[kind] = now


def main() -> None:
    """What `winnow up` leaves behind; ends with the servers."""
    services = Services(Path(sys.argv[1]))
    supervisor = Supervisor(services, lambda line: print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True))
    while supervisor.tend():
        time.sleep(ROUND)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
