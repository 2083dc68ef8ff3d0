"""Inside a job's driver: put one piece of work where its resources are, or a group of ranks around a training loop.

A task is tried once (`max_retries=0`), because who retries is decided in one place, the flow. A rank that dies takes its
group with it, and the group is started again up to `max_failures` times; what it resumes from is the target's business.
Targets are import strings, so the driver imports neither torch nor the work.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MISTAKES = (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, ImportError)
TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # the default of 2 s is how long a dead rank goes unnoticed
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # a stopped process; hangs inside a step are the target's to find
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # another stage may hold the CPUs for a while
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice once stdout is a log file
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


class RankFailed(RuntimeError):
    """What a rank raised, as text: the driver need not have the class."""


class Mistake(RankFailed):
    """One that would come back on every try, so the group is not started again."""


class Running:
    """A task under way."""

    def __init__(self, reference: Any, target: str) -> None:
        self._reference, self._target = reference, target

    def result(self, timeout: float | None = None) -> Any:
        """The target's return value. A failure is a RuntimeError that names the cause; TimeoutError if it is not done."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            failed, value = ray.get(self._reference, timeout=timeout)
        except GetTimeoutError:
            raise TimeoutError(f"{self._target} is not done after {timeout} s") from None
        except RayError as error:
            raise RuntimeError(f"{self._target}: {type(error).__name__}: {_first_line(error)}") from None
        if failed:
            raise RuntimeError(f"{self._target}: {value['type']}: {value['message']}\n{value['traceback']}")
        return value

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def connect() -> None:
    """Join the cluster that runs this job, once; the address is in the job's environment."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # equal lines of two ranks are two events
    if os.environ.get("WINNOW_LOCAL"):
        _use_prestarted_workers()
    ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level="warning")


def start_task(
    target: str,
    payload: Mapping[str, Any],
    cpus: float = 1,
    gpus: float = 0,
    env: Mapping[str, str] | None = None,
    memory: int | None = None,
) -> Running:
    """Begin `module:function(payload)` on a worker that has these resources; `env` is set before the import."""
    connect()
    import ray

    _check_room(1, cpus, gpus)
    settings = {**_thread_settings(cpus), **_passed_on(), **(env or {})}
    options = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0, "name": target}
    remote = ray.remote(_task).options(**options, **({"memory": memory} if memory else {}))
    return Running(remote.remote(target, dict(payload), settings), target)


def run_task(target: str, payload: Mapping[str, Any], cpus: float = 1, gpus: float = 0, **options: Any) -> Any:
    """The result of `module:function(payload)`, run on a worker."""
    return start_task(target, payload, cpus, gpus, **options).result()


def run_group(
    target: str,
    payload: Mapping[str, Any],
    ranks: int,
    cpus_per_rank: float = 1,
    gpus_per_rank: float = 0,
    max_failures: int = 0,
    name: str = "group",
    storage: str | Path = "",
    env: Mapping[str, str] | None = None,
) -> None:
    """Run `module:function(payload)` on every rank of one torch.distributed group, to the end.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set and the process group is initialised (gloo on CPU,
    nccl on GPU). `storage` is a directory for Ray Train's own bookkeeping, seen by every node.
    """
    connect()
    _check_room(ranks, cpus_per_rank, gpus_per_rank)
    _warm_up(ranks)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    settings = {**_thread_settings(cpus_per_rank), **_passed_on(), **(env or {})}
    if not gpus_per_rank:
        settings["DS_ACCELERATOR"] = "cpu"
    resources = {"CPU": cpus_per_rank, **({"GPU": gpus_per_rank} if gpus_per_rank else {})}
    storage = Path(storage or Path.cwd() / ".ray-train").resolve()
    storage.mkdir(parents=True, exist_ok=True)
    trainer = TorchTrainer(
        _rank,
        train_loop_config={"target": target, "payload": dict(payload), "settings": settings},
        torch_config=TorchConfig(backend="nccl" if gpus_per_rank else "gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=bool(gpus_per_rank), resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{name}-{time.time_ns()}",  # a name used twice would resume Ray Train's own state
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_stop_at_mistakes()],
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RuntimeError(f"{target} on {ranks} ranks: {_cause(error)}") from None


def load(target: str) -> Any:
    """The function that `module:function` names."""
    module, _, function = target.partition(":")
    if not function:
        raise ValueError(f"target '{target}' should be 'module:function'")
    return getattr(importlib.import_module(module), function)


def _task(target: str, payload: dict, settings: dict[str, str]) -> tuple[bool, Any]:
    """Runs on the worker. Errors come back as text: the driver need not have their classes."""
    _prepare(settings)
    try:
        return False, load(target)(payload)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return True, {"type": type(error).__name__, "message": str(error), "traceback": text}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _rank(config: dict[str, Any]) -> None:
    """Runs on every rank, after the process group stands."""
    _prepare(config["settings"])
    try:
        load(config["target"])(config["payload"])
    except Exception as error:
        kind = Mistake if isinstance(error, MISTAKES) else RankFailed
        trace = "".join(traceback.format_exception(error))
        raise kind(f"{type(error).__name__}: {error}\n{trace}") from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _stop_at_mistakes() -> Any:
    """Ray Train would try a typing error `max_failures` times; an error in its controller ends the run at once."""
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in sorted(worker_exceptions.items()):
                if isinstance(error, Mistake):
                    raise Mistake(f"rank {rank}: {error}")

    return StopAtMistakes()


def _warm_up(ranks: int) -> None:
    """Import Ray Train in the processes that will be its controller and ranks, while this one imports it too.

    Ray Train imports torch here, then in its controller, then in the ranks, one after the other. Idle workers with the
    same variables are what it takes first, so all of them may import at the same time: half the wait on two cores.
    """
    import ray

    os.environ.update({name: os.environ.get(name, value) for name, value in TRAIN_SETTINGS.items()})
    variables = {name: os.environ[name] for name in TRAIN_SETTINGS}  # exactly what Ray Train passes to its actors
    room = min(ranks + 1, int(ray.cluster_resources().get("CPU", 1)) + 1)
    warm = ray.remote(_import_train).options(num_cpus=0, max_retries=0, runtime_env={"env_vars": variables})
    references = [warm.remote() for _ in range(room)]
    import ray.train.torch  # noqa: F401

    ray.wait(references, num_returns=len(references), timeout=60)


def _import_train() -> None:
    import ray.train.torch  # noqa: F401
    import ray.train.v2._internal.execution.controller  # noqa: F401


def _prepare(settings: dict[str, str]) -> None:
    """Workers are shared by the tasks of a job, so a torch that is here already is told its threads as well."""
    os.environ.update(settings)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(settings[THREADS[0]]))


def _use_prestarted_workers() -> None:
    """Drop the job's variables from the tasks' runtime environment: `settings` carries them, and without any the tasks
    run in workers that Ray has started already, a second sooner each."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    if environment := (job.get("runtime_env") or {}).pop("env_vars", None):
        os.environ["WINNOW_PASSED_ON"] = json.dumps(sorted(environment))
        os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)


def _passed_on() -> dict[str, str]:
    names = json.loads(os.environ.get("WINNOW_PASSED_ON", "[]"))
    names += ["TORCH_EXTENSIONS_DIR", "MALLOC_MMAP_THRESHOLD_"]
    return {name: os.environ[name] for name in names if name in os.environ}


def _thread_settings(cpus: float) -> dict[str, str]:
    return dict.fromkeys(THREADS, str(max(1, int(cpus))))


def _check_room(ranks: int, cpus: float, gpus: float) -> None:
    """What can never be placed would wait for ever; only a cluster that grows by itself may be asked for more."""
    if not os.environ.get("WINNOW_LOCAL"):
        return
    import ray

    for name, wanted in (("CPU", ranks * cpus), ("GPU", ranks * gpus)):
        there = ray.cluster_resources().get(name, 0)
        if wanted > there:
            raise ValueError(f"{ranks} x {wanted / ranks:g} {name} were asked for, this machine has {there:g}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _cause(error: BaseException) -> str:
    """Ray Train wraps what a rank raised; of several ranks the one that did not merely lose its peer is the cause."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = min(failures.items(), key=lambda item: ("closed by peer" in str(item[1]), item[0]))
        return f"rank {rank}: {failure}"
    inner = getattr(error, "controller_failure", None) or error
    return str(inner) if isinstance(inner, Mistake) else f"{type(inner).__name__}: {inner}"
