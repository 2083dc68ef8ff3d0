"""What a run was made from, and which process tells of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from functools import cache
from pathlib import Path

from cluster.servers.processes import Process
from flows.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
LOCK_FILE = ROOT / "infra" / "requirements.lock"


FOLDER = "winnow.folder"  # in which relative paths of the recipe begin


def provenance(plan: Plan) -> dict[str, str]:
    """What a run was made from: recipe, data set, lock file, commit."""
    data = [step for step in plan.steps if step.node.stage.yields == "tokens"]
    return {
        "winnow.recipe": plan.recipe.name,
        FOLDER: str(Path.cwd()),
        "winnow.recipe_sha256": hashlib.sha256(plan.recipe.text.encode()).hexdigest(),
        "winnow.lock_sha256": hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.exists() else "none",
        "winnow.git_commit": git_commit(),
        **source(plan.recipe.name),
        "winnow.dataset": ", ".join(step.artifact.address for step in data),
    }


def source(recipe: str) -> dict[str, str]:
    """What MLflow shows as a run's source: the recipe, and the commit of Winnow."""
    commit = git_commit().removesuffix("-dirty")
    tags = {"mlflow.source.name": f"{recipe}.yaml", "mlflow.source.type": "LOCAL"}
    return tags | ({} if commit == "none" else {"mlflow.source.git.commit": commit})


@cache
def git_commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "none"


def this_process() -> str:
    """host:pid:start, by which a later run tells whether this one still lives."""
    return Process.of(os.getpid()).name


def process_is_alive(name: str) -> bool:
    """False only for a process of this host that is gone; another host's cannot be judged from here."""
    process = Process.named(name)
    return process is None or process.alive
