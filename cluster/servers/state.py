"""What is written down of the servers of a home: one private file, services.json, which every process of the home reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from cluster.servers.embedded import Server
from cluster.servers.private import write_private
from cluster.servers.processes import Process

Mode = Literal["embedded", "up"]
POOL = "winnow"  # of the flow runs that a home's own server of deployments begins
DEPLOYMENTS = [sys.executable, "-m", "flows.deployments"]


class State(BaseModel):
    """The file services.json."""

    mode: Mode = "embedded"
    temporary: str
    servers: dict[str, Server] = {}
    owners: list[Process] = []
    deployments: list[str] = DEPLOYMENTS


class Health(BaseModel):
    url: str
    pid: int
    alive: bool
    healthy: bool
    restarts: int
    log: str


def read_state(file: Path) -> State | None:
    """What it holds; None where there is none. Raises ValueError where it is not as it was written: servers that it named
    may run, and would neither be joined nor stopped."""
    try:
        return State.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise ValueError(
            f"{file} is damaged, or of another version of Winnow; end the servers of this home, if they run, then remove it"
        ) from None


def write_state(file: Path, state: State) -> None:
    write_private(file, state.model_dump_json(indent=1))
