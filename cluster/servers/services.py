"""The servers of one home: started once, shared by everyone who asks, stopped by the last who needed them.

`winnow run` on a laptop must not ask for a cluster first, and must not leave one behind. So the first run starts Ray
and Prefect, a second run in the same home joins it, the last one to end stops them; `winnow up` makes the same set
stand until `winnow down`. What is running is written in one private file; an owner that was killed is noticed, and what
it left behind is adopted if it still answers and cleared away if not. Who starts again what dies is the supervisor.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from cluster.lock import locked
from cluster.profile import CHECKOUT, home
from cluster.servers import embedded as servers
from cluster.servers.embedded import Launch, Server
from cluster.servers.ports import ports_for, taken
from cluster.servers.private import private_directory
from cluster.servers.processes import Process, end, last_lines, spawn
from cluster.servers.state import DEPLOYMENTS, Health, Mode, State, read_state, write_state

EMBEDDED = ("ray", "prefect")
STANDING = ("ray", "prefect", "mlflow", "dashboard", "warm", "deployments", "supervisor")
BESIDE = ("warm", "deployments", "supervisor")  # no servers themselves: they start when those answer
PATIENCE = 120.0  # seconds a server may take to answer: a cold disk, a busy machine
SLOW_RAY = "timed out during startup"  # Ray gives its node 30 s, too few where all servers start on a busy machine
PORT_TRIES = 3  # a port that was free may be gone a moment later


class ServerFailed(RuntimeError):
    """A server did not come up; not the user's fault."""


class Services:
    """The set of servers of one home. Any number of processes may hold one of these for the same home."""

    def __init__(self, directory: Path | None = None) -> None:
        self.home = Path(directory).resolve() if directory else home()
        self.file = self.home / "services.json"
        self.state: State | None = self.load()

    def locked(self) -> AbstractContextManager[None]:
        """For whoever changes the state."""
        return locked(self.home / "services.lock", f"whoever starts or stops the servers of {self.home}")

    def start(
        self, kinds: Iterable[str] | None = None, mode: Mode = "embedded", deployments: Sequence[str] | None = None
    ) -> Services:
        """See that every server of `kinds` answers: join what runs, start what does not, all at the same time.

        Embedded, this process becomes one of the owners; `release` gives the ownership back. `deployments` replaces the
        command that serves the Prefect deployment (mode "up").
        """
        kinds = list(kinds if kinds is not None else EMBEDDED if mode == "embedded" else STANDING)
        if unknown := set(kinds) - set(STANDING):
            raise ValueError(f"no service '{unknown.pop()}'; choose one of {', '.join(STANDING)}")
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.locked():
            state = self.state = self.load() or self._fresh()
            before = state.mode
            state.owners = [owner for owner in state.owners if owner.alive]
            if mode == "up":
                state.mode, state.deployments = "up", list(deployments or DEPLOYMENTS)
            elif (me := Process.of(os.getpid())) not in state.owners:
                state.owners.append(me)
            started: list[str] = []
            try:
                dead = self._clear_dead()
                self.save()
                self._launch([*dead, *(kind for kind in kinds if kind not in state.servers)], started)
            except BaseException:
                self._give_up(started, before)
                raise
        return self

    def release(self) -> None:
        """This process needs them no longer; the last owner of an embedded set stops it."""
        with self.locked():
            self.state = self.load()
            if self.state is None:
                return
            self.state.owners = [owner for owner in self.state.owners if owner.alive and owner.pid != os.getpid()]
            if self.state.mode == "embedded" and not self.state.owners:
                self._end_all()
            else:
                self.save()

    def stop(self) -> None:
        """Stop every server of this home, whoever uses it."""
        with self.locked():
            self.state = self.load()
            self._end_all()

    def status(self) -> dict[str, Health]:
        """What the state file names, and whether it still lives and answers."""
        self.state = self.load()
        found = self.state.servers if self.state else {}
        return {
            kind: Health(
                url=server.url,
                pid=server.process.pid,
                alive=server.process.alive,
                healthy=server.process.alive and servers.healthy(kind, server),
                restarts=server.restarts,
                log=server.log,
            )
            for kind, server in found.items()
        }

    def environment(self) -> dict[str, str]:
        """Variables for a flow or driver process of this home. They hold secrets: never an argument, never a log."""
        return servers.client_environment(self.home, self.state.servers if self.state else {})

    @property
    def mode(self) -> Mode | None:
        return self.state.mode if self.state else None

    def server(self, kind: str) -> Server:
        """Address and token of a started server."""
        if self.state is None or kind not in self.state.servers:
            raise RuntimeError(f"no {kind} server runs in {self.home}; start it with `winnow up`")
        return self.state.servers[kind]

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _clear_dead(self) -> list[str]:
        """End what no longer answers; the kinds, whose places are kept for others."""
        dead = [kind for kind, server in self.state.servers.items() if not self._answers(kind, server)]
        for kind in dead:
            self.clear(kind)
        return dead

    def clear(self, kind: str) -> None:
        """End what is left of a server, before another takes its place. Flows, servers and copies that one of `BESIDE` began
        go on without it: they are its children, and no part of it."""
        server = self.state.servers[kind]
        if kind not in BESIDE:
            _end([server])
        elif (process := server.process.find()) is not None:
            process.kill()

    def _answers(self, kind: str, server: Server) -> bool:
        """A busy machine may miss one probe; a live process is given a few, and one that is still starting its time."""
        young = server.process.age < PATIENCE
        deadline = time.monotonic() + (PATIENCE if young else 3.0)
        while server.process.alive:
            if servers.healthy(kind, server):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.3)
        return False

    def _fresh(self) -> State:
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:10]
        return State(temporary=f"/tmp/winnow-{os.getuid()}-{digest}")  # short: socket paths

    def _launch(self, kinds: list[str], started: list[str]) -> None:
        """Start all, then wait for all; every process is in the file before anyone waits for it."""
        for beside in (False, True):  # deployments register with Prefect at once
            started += (some := [kind for kind in kinds if (kind in BESIDE) is beside])
            self._await({kind: self.spawn(kind) for kind in some})

    def spawn(self, kind: str, lost: Iterable[int] = ()) -> subprocess.Popen:
        """Start a server, in the place of the dead one of its kind if there is one; `lost` are ports that others took."""
        temporary = private_directory(Path(self.state.temporary))
        dead = self.state.servers.get(kind)
        ports = ports_for(self.home, kind, self.state.mode == "up", lost)
        if kind in servers.LAUNCHES:
            launch = servers.LAUNCHES[kind](self.home, temporary / kind, ports)
        else:
            supervisor = [sys.executable, "-m", "cluster.servers.supervisor", str(self.home)]
            command = self.state.deployments if kind == "deployments" else supervisor
            launch = Launch(command=command, environment={**os.environ, **self.environment()})
        log = self.home / "logs" / f"{kind}.log"
        mark = dead.mark if dead else secrets.token_hex(16)
        process = spawn(launch.command, launch.environment, mark, log, CHECKOUT)
        told = {"url": launch.url, "token": launch.token, "log": str(log), "ports": ports}
        self.state.servers[kind] = Server(process=Process.of(process.pid), mark=mark, **told)
        self.save()
        return process

    def _await(self, started: dict[str, subprocess.Popen]) -> None:
        waiting, deadline, lost, slowly = dict(started), time.monotonic() + PATIENCE, [], set()
        while waiting:
            for kind, process in list(waiting.items()):
                server = self.state.servers[kind]
                if process.poll() is not None:
                    _end([server])  # or what is left of it holds the ports
                    clashed = [port for port in server.ports.values() if taken(port)]
                    slow = SLOW_RAY in last_lines(server.log) and kind not in slowly
                    if not (clashed or slow) or len(lost) >= PORT_TRIES:
                        raise ServerFailed(_told(kind, f"ended with {process.returncode} while starting", server))
                    lost += clashed
                    slowly |= {kind} if slow else set()
                    waiting[kind] = self.spawn(kind, lost)
                elif servers.healthy(kind, server):
                    del waiting[kind]
            if time.monotonic() > deadline:
                kind = next(iter(waiting))
                raise ServerFailed(_told(kind, f"has not answered for {PATIENCE:.0f} s", self.state.servers[kind]))
            time.sleep(0.1)

    def _give_up(self, started: list[str], mode: Mode) -> None:
        """A failed start leaves what was there before and nothing else."""
        state = self.state
        state.mode = mode
        state.owners = [owner for owner in state.owners if owner.alive and owner.pid != os.getpid()]
        _end([state.servers.pop(kind) for kind in started if kind in state.servers])
        if state.servers and (state.owners or mode == "up"):
            self.save()
        else:
            self._end_all()

    def _end_all(self) -> None:
        if self.state is not None:
            _end(list(self.state.servers.values()))  # the supervisor waits for the lock that is held here
            shutil.rmtree(self.state.temporary, ignore_errors=True)
        self.state = None
        self.file.unlink(missing_ok=True)

    def load(self) -> State | None:
        return read_state(self.file)

    def save(self) -> None:
        write_state(self.file, self.state)


def _end(ended: list[Server]) -> None:
    if ended:
        end([server.process for server in ended], {server.mark for server in ended})


def _told(kind: str, what: str, server: Server) -> str:
    """One line: what happened, the last words, and where the rest is."""
    words = next((line.strip() for line in reversed(last_lines(server.log).splitlines()) if line.strip()), "no word of it")
    return f"{kind} {what}: {words[:200]}; more in {server.log}"
