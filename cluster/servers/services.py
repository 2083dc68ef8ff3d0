"""The servers of one home: started once, shared by everyone who asks, stopped by the last who needed them.

`winnow run` on a laptop must not ask for a cluster first, and must not leave one behind. So the first run starts Ray
and Prefect, a second run in the same home joins it, the last one to end stops them; `winnow up` makes the same set
stand until `winnow down`. What is running is written in one private file; an owner that was killed is noticed, and what
it left behind is adopted if it still answers and cleared away if not.
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
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from cluster.lock import locked
from cluster.profile import CHECKOUT, home
from cluster.servers import embedded as servers
from cluster.servers.embedded import Launch, Server
from cluster.servers.processes import Process, end, spawn

Mode = Literal["embedded", "up"]
EMBEDDED = ("ray", "prefect")
STANDING = ("ray", "prefect", "mlflow", "deployments")
DEPLOYMENTS = [sys.executable, "-m", "flows.deployments"]
PATIENCE = 120.0  # seconds a server may take to answer: a cold disk, a busy machine


class State(BaseModel):
    """The file services.json."""

    mode: Mode = "embedded"
    temporary: str
    servers: dict[str, Server] = {}
    owners: list[Process] = []


class Health(BaseModel):
    url: str
    pid: int
    alive: bool
    healthy: bool


class Services:
    """The set of servers of one home. Any number of processes may hold one of these for the same home."""

    def __init__(self, directory: Path | None = None) -> None:
        self.home = Path(directory).resolve() if directory else home()
        self.file = self.home / "services.json"
        self.state: State | None = self._load()

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
        with locked(self.home / "services.lock"):
            state = self.state = self._surviving() or self._fresh()
            state.owners = [owner for owner in state.owners if owner.alive]
            if mode == "up":
                state.mode = "up"
            elif (me := Process.of(os.getpid())) not in state.owners:
                state.owners.append(me)
            self._save()
            try:
                self._launch([kind for kind in kinds if kind not in state.servers], list(deployments or DEPLOYMENTS))
            except BaseException:
                self._give_up()
                raise
        return self

    def release(self) -> None:
        """This process needs them no longer; the last owner of an embedded set stops it."""
        with locked(self.home / "services.lock"):
            self.state = self._load()
            if self.state is None:
                return
            self.state.owners = [owner for owner in self.state.owners if owner.alive and owner.pid != os.getpid()]
            if self.state.mode == "embedded" and not self.state.owners:
                self._end_all()
            else:
                self._save()

    def stop(self) -> None:
        """Stop every server of this home, whoever uses it."""
        with locked(self.home / "services.lock"):
            self.state = self._load()
            self._end_all()

    def status(self) -> dict[str, Health]:
        """What the state file names, and whether it still lives and answers."""
        self.state = self._load()
        found = self.state.servers if self.state else {}
        return {
            kind: Health(
                url=server.url,
                pid=server.process.pid,
                alive=server.process.alive,
                healthy=server.process.alive and servers.healthy(kind, server),
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

    def _surviving(self) -> State | None:
        """The recorded set less what died or no longer answers; None when nothing of it is left."""
        state = self._load()
        if state is None:
            return None
        kept = {kind: server for kind, server in state.servers.items() if self._answers(kind, server)}
        if not kept:
            self.state = state
            self._end_all()
            return None
        _end([server for kind, server in state.servers.items() if kind not in kept])
        state.servers = kept
        return state

    def _answers(self, kind: str, server: Server) -> bool:
        """A busy machine may miss one probe; a live process is given a few."""
        return server.process.alive and any(servers.healthy(kind, server) or time.sleep(0.5 * attempt) for attempt in range(4))

    def _fresh(self) -> State:
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:10]
        self.home.mkdir(parents=True, exist_ok=True)
        return State(temporary=f"/tmp/winnow-{os.getuid()}-{digest}")  # short: socket paths

    def _launch(self, kinds: list[str], deployments: list[str]) -> None:
        """Start all, then wait for all; every process is in the file before anyone waits for it."""
        started = {kind: self._spawn(kind, servers.LAUNCHES[kind]) for kind in kinds if kind != "deployments"}
        self._await(started)
        if "deployments" in kinds:  # it registers with Prefect at once
            launch = Launch(command=deployments, environment={**os.environ, **self.environment()})
            self._await({"deployments": self._spawn("deployments", lambda *_: launch)})

    def _spawn(self, kind: str, prepare) -> subprocess.Popen:
        temporary = servers.private_directory(Path(self.state.temporary))
        launch = prepare(self.home, temporary / kind)
        log = self.home / "logs" / f"{kind}.log"
        mark = secrets.token_hex(16)
        process = spawn(launch.command, launch.environment, mark, log, CHECKOUT)
        record = Process.of(process.pid)
        server = Server(process=record, mark=mark, url=launch.url, token=launch.token, log=str(log))
        self.state.servers[kind] = server
        self._save()
        return process

    def _await(self, started: dict[str, subprocess.Popen]) -> None:
        waiting, deadline = dict(started), time.monotonic() + PATIENCE
        while waiting:
            for kind, process in list(waiting.items()):
                server = self.state.servers[kind]
                if process.poll() is not None:
                    log = last_lines(server.log)
                    raise RuntimeError(f"{kind} ended with {process.returncode} while starting:\n{log}")
                if servers.healthy(kind, server):
                    del waiting[kind]
            if time.monotonic() > deadline:
                kind = next(iter(waiting))
                log = last_lines(self.state.servers[kind].log)
                raise RuntimeError(f"{kind} has not answered for {PATIENCE:.0f} s:\n{log}")
            time.sleep(0.1)

    def _give_up(self) -> None:
        """A failed start leaves what others use and nothing else."""
        state = self.state
        state.owners = [owner for owner in state.owners if owner.alive and owner.pid != os.getpid()]
        healthy = {kind: server for kind, server in state.servers.items() if servers.healthy(kind, server)}
        if state.owners and healthy:
            _end([server for kind, server in state.servers.items() if kind not in healthy])
            state.servers = healthy
            self._save()
        else:
            self._end_all()

    def _end_all(self) -> None:
        if self.state is not None:
            _end(list(self.state.servers.values()))
            shutil.rmtree(self.state.temporary, ignore_errors=True)
        self.state = None
        self.file.unlink(missing_ok=True)

    def _load(self) -> State | None:
        with suppress(FileNotFoundError, ValidationError):
            return State.model_validate_json(self.file.read_bytes())
        return None

    def _save(self) -> None:
        servers.write_private(self.file, self.state.model_dump_json(indent=1))


def _end(ended: list[Server]) -> None:
    if ended:
        end([server.process for server in ended], {server.mark for server in ended})


def last_lines(log: str | Path, count: int = 20) -> str:
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    return "(no log)"
