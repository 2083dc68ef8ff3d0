"""Joining, from a job's driver, the cluster that runs the job."""

from __future__ import annotations

import json
import os
from threading import Lock

TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # the default of 2 s is how long a dead rank goes unnoticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a stopped process; hangs inside a step are the target's to find
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # another stage may hold the CPUs for a while
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice once stdout is a log file
}
_JOINING = Lock()


def connect() -> None:
    """Join the cluster that runs this job, once, whoever asks at the same time; the address is in the job's environment."""
    import ray

    with _JOINING:
        if not ray.is_initialized():
            _join()


def _join() -> None:
    import ray

    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two ranks are two events
    os.environ.update({name: os.environ.get(name, value) for name, value in TRAIN_SETTINGS.items()})
    if os.environ.get("WINNOW_LOCAL"):
        _use_prestarted_workers()
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level="warning")


def _use_prestarted_workers() -> None:
    """Drop the job's variables from the tasks' runtime environment: a worker is given them with its task, and without any the
    tasks run in workers that Ray has started already, a second sooner each."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if environment := (job.get("runtime_env") or {}).pop("env_vars", None):
        os.environ["WINNOW_PASSED_ON"] = json.dumps(sorted(environment))
        os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)
