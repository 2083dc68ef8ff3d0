"""From a plan's steps to one Ray job: what the job is told, with which resources, under which environment."""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import Any

from cluster.profile import Profile
from cluster.ray import arrival
from cluster.ray.jobs import NOT_SECRET, SECRET, Jobs
from cluster.servers.services import Services
from cluster.warm.asking import alone
from flows.plan import Step
from flows.provenance import git_commit
from tasks.job import JOB_VARIABLE, payload

PASSED_ON = ("AWS_", "HF_", "WINNOW_HOME", "TORCH_EXTENSIONS_DIR")  # secrets reach a job through its cluster
OF_THIS_MACHINE = ("WINNOW_HOME", "TORCH_EXTENSIONS_DIR", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


class Submitter:
    """Knows where jobs go: the profile's cluster, or the one of this home."""

    def __init__(self, profile: Profile, flow_run: str = "") -> None:
        self.profile, self.flow_run = profile, flow_run

    @cached_property
    def jobs(self) -> Jobs:
        if self.profile.ray.address:
            return Jobs.at(self.profile.ray.address)
        return Jobs.of(Services())

    def submit(self, steps: list[Step]) -> str:
        """Start the job that makes these steps, or join it where it already runs; its id."""
        environment = self._environment()
        work = json.dumps([self.payload(step) for step in steps])
        environment[JOB_VARIABLE] = work.replace("$", r"\u0024")  # Ray puts its own variables for $NAME in what a job is told
        command = [*alone(), "-m", "tasks.job"] if self.jobs.local else ["python", "-m", arrival.__name__, "tasks.job"]
        owner = {"flow_run": self.flow_run}  # whose jobs these are, for who cancels it
        return self.jobs.submit(steps[0].artifact.key, command, environment, metadata=owner)

    def _environment(self) -> dict[str, str]:
        """What a job learns of this process. Another machine is told no path of this one, and what it has to have."""
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(PASSED_ON) and (name in NOT_SECRET or not SECRET.search(name))
        }
        if not self.jobs.local:
            passed = {name: value for name, value in passed.items() if name not in OF_THIS_MACHINE and value[:1] not in "/~"}
            passed |= {arrival.VARIABLE: json.dumps(arrival.versions()), "WINNOW_HOME": self.profile.scratch}
        return passed | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}

    def payload(self, step: Step) -> dict[str, Any]:
        resources = self.profile.resources("speed" if step.exclusive else step.node.name)
        execution = {
            "device": self.profile.device,
            "precision": self.profile.precision,
            "engine": self.profile.engine,
            "zero": self.profile.zero,
            "offload": self.profile.offload,
            "micro_batch": self.profile.micro_batch,
            "compile": self.profile.compile,
            "recompute": self.profile.recompute,
            "logits_bytes": self.profile.logits_bytes,
            "checkpoint_every_seconds": self.profile.checkpoint_every_seconds,
            "patience": self.profile.patience,
            "threads": resources.threads,
            "workers": resources.workers,
            "activation_bytes": self.profile.activation_bytes,
        }
        work = payload(
            step.node.stage, step.artifact, step.parent_addresses, execution, self.profile.store, self.profile.scratch
        )
        return {
            **work,
            "resources": resources.model_dump(exclude={"threads"}),
            "max_failures": self.profile.max_failures,
            "provenance": {"git_commit": git_commit(), "profile": self.profile.name},
        }
