"""From a plan's steps to one Ray job: what the job is told, with which resources, under which environment."""

from __future__ import annotations

import json
import os
import sys
from functools import cached_property
from typing import Any

from cluster.jobs import Jobs
from cluster.profile import Profile, home
from flows.chronicle import git_commit
from flows.plan import Step
from tasks.job import JOB_VARIABLE, payload

PASSED_ON = ("AWS_", "HF_", "RAY_AUTH_", "WINNOW_", "TORCH_EXTENSIONS_DIR", "MALLOC_")


class Submitter:
    """Knows where jobs go and where runs are tracked: the profile's servers, or the embedded ones by environment."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.tracking_uri = (
            profile.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"
        )

    @cached_property
    def jobs(self) -> Jobs:
        return Jobs(self.profile.ray.address or os.environ["RAY_DASHBOARD_URL"])

    def submit(self, steps: list[Step]) -> str:
        """Start the job that makes these steps, or join it where it already runs; its id."""
        work = [self.payload(step) for step in steps]
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        environment |= {JOB_VARIABLE: json.dumps(work), "PYTHONUNBUFFERED": "1"}
        return self.jobs.submit(steps[0].artifact.key, [sys.executable, "-m", "tasks.job"], environment)

    def payload(self, step: Step) -> dict[str, Any]:
        exclusive = step.id.endswith(".speed")
        resources = self.profile.resources(step.id.rpartition(".")[2] if step.node.measures else step.node.name)
        execution = {
            "device": self.profile.device,
            "precision": self.profile.precision,
            "engine": self.profile.engine,
            "zero": self.profile.zero,
            "micro_batch": self.profile.micro_batch,
            "checkpoint_every_seconds": self.profile.checkpoint_every_seconds,
            "threads": resources.threads,
        }
        work = payload(
            step.node.stage, step.artifact, step.parent_addresses, execution, self.profile.store, self.profile.scratch
        )
        return {
            **work,
            "resources": {**resources.model_dump(exclude={"threads"}), "exclusive": exclusive},
            "max_failures": self.profile.max_failures,
            "provenance": {"git_commit": git_commit(), "profile": self.profile.name},
        }


