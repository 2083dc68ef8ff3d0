"""Which attempt owns the checkpoints of a training: each is numbered when it is started, and the highest number saves.

A number is the clock's, but always above that of the last owner: on a machine whose clock was set back, after it had been ahead
or on another one, the attempts to come would all pass for leftovers of an older one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from cluster.store import durable
from tasks.context import CHECKPOINTS

OWNER = "owner.json"


class Fenced(RuntimeError):
    """A newer attempt owns the directory: this worker is a leftover and must stop."""

    shared = True  # nothing is wrong with the trial that it may be: it is the run that stops


def next_attempt(scratch: Path) -> int:
    """The number of the attempt that begins now, for whoever starts its workers. ``scratch`` is the stage's."""
    return max(time.time_ns(), _owner(scratch / CHECKPOINTS) + 1)


def register_attempt(directory: Path, attempt: int) -> None:
    """Make ``attempt`` the owner: from now on older attempts cannot save here. Called before the first step."""
    directory.mkdir(parents=True, exist_ok=True)
    refuse_if_fenced(directory, attempt)
    durable.write(directory / OWNER, json.dumps({"attempt": attempt}).encode())


def refuse_if_fenced(directory: Path, attempt: int) -> None:
    if (newer := _owner(directory)) > attempt:
        raise Fenced(f"{directory} belongs to attempt {newer}; attempt {attempt} is a leftover: another run has taken over")


def _owner(directory: Path) -> int:
    """The attempt that owns a directory of checkpoints; 0 where none does."""
    owner = directory / OWNER
    return int(json.loads(owner.read_bytes())["attempt"]) if owner.exists() else 0
