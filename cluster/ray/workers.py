"""Used in a job's driver: run one function on a worker with the resources it needs, or a training loop on a group of ranks.

A task is tried once (`max_retries=0`), because who retries is decided in one place, the flow. A rank that dies takes
its group with it, and the group is started again up to `max_failures` times; what it resumes from is the target's
business. Targets are import strings, so the driver imports neither torch nor the work.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.ray.joining import connect
from cluster.ray.retries import Seen, Tell, culprit, nowhere, said_of, stop_at_mistakes
from cluster.ray.targets import (
    THREADS,
    Host,
    Mistake,
    TargetFailed,
    run_rank,
    run_single_rank,
    run_target,
    run_warm,
    run_warm_rank,
    unwrap,
    wrap,
)

PASSED_ON = ("TORCH_EXTENSIONS_DIR",)


class Running:
    """A task under way."""

    def __init__(self, reference: Any, target: str) -> None:
        self._reference, self._target = reference, target

    def result(self, timeout: float | None = None) -> Any:
        """The target's return value. A failure is a RuntimeError naming the cause; TimeoutError if it is not done."""
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            failed, value = ray.get(self._reference, timeout=timeout)
        except GetTimeoutError:
            raise TimeoutError(f"{self._target} is not done after {timeout} s") from None
        except RayError as error:
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise RuntimeError(f"{self._target}: {type(error).__name__}: {line}") from None
        if failed:
            raise (Mistake if value["mistake"] else TargetFailed)(f"{self._target}: {value['text']}")
        return value

    def done(self) -> bool:
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def cancel(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)


def start_task(
    target: str,
    payload: Mapping[str, Any],
    cpus: float = 1,
    gpus: float = 0,
    env: Mapping[str, str] | None = None,
    memory: int | None = None,
    warm: bool = False,
) -> Running:
    """Begin `module:function(payload)` on a worker that has these resources; `env` is set before the import. What needs neither
    Ray nor an accelerator may be done by a copy of a `warm` process."""
    function = run_warm if warm and not gpus else run_target
    return _start(function, target, payload, _settings(cpus, env), cpus, gpus, memory=memory)


def run_task(target: str, payload: Mapping[str, Any], cpus: float = 1, gpus: float = 0, **options: Any) -> Any:
    """The result of `module:function(payload)`, run on a worker."""
    return start_task(target, payload, cpus, gpus, **options).result()


class Answer(Running):
    """What an object on a worker is asked for."""

    def result(self, timeout: float | None = None) -> Any:
        return unwrap(super().result(timeout))


class Actor:
    """An object that lives on a worker until this handle is gone."""

    near = False  # what a card holds goes through the host and the object store

    def __init__(self, handle: Any, target: str) -> None:
        self._handle, self._target = handle, target

    def call(self, method: str, *arguments: Any) -> Answer:
        """Begin one of its methods; they run in the order they were called."""
        return Answer(self._handle.call.remote(method, wrap(arguments)), f"{self._target}.{method}")


def start_actor(
    target: str, payload: Mapping[str, Any], cpus: float = 1, gpus: float = 0, env: Mapping[str, str] | None = None
) -> Actor:
    """Make `module:Class(payload)` on a worker that has these resources. It is not made again if the worker dies."""
    connect()
    import ray

    _check_room(1, cpus, gpus)
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Host).remote
    return Actor(remote(target, dict(payload), _settings(cpus, env)), target)


def on_cluster() -> bool:
    """Whether this process is a worker, or the driver, of a cluster."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


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
    tell: Tell = print,
    seen: Seen = nowhere,
) -> None:
    """Run `module:function(payload)` on every rank of one torch.distributed group, to the end.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set and the process group is initialised (gloo on CPU,
    nccl on GPU). `storage` is a directory for Ray Train's own bookkeeping, seen by every node. A dead rank starts the
    group anew, up to `max_failures` times, and is told of with where it was `seen`; a mistake (see MISTAKES) does neither.
    """
    settings = _settings(cpus_per_rank, env) | ({} if gpus_per_rank else {"DS_ACCELERATOR": "cpu"})
    config = {"target": target, "payload": dict(payload), "settings": settings}
    try:
        if ranks == 1:
            _run_alone(config, cpus_per_rank, gpus_per_rank, max_failures, tell, seen)
        else:
            where = Path(storage or Path.cwd() / ".ray-train").resolve()
            _run_ranks(config, ranks, cpus_per_rank, gpus_per_rank, max_failures, name, where, tell, seen)
    except Exception as error:
        raise RuntimeError(f"{target} on {ranks} rank{'s' * (ranks > 1)}: {_cause(error, seen)}") from None


def _run_alone(config: dict, cpus: float, gpus: float, max_failures: int, tell: Tell, seen: Seen) -> None:
    """A group of one is a task that is tried again: it starts in 3 s where Ray Train takes 12, importing torch three times."""
    for failures in range(max_failures + 1):
        try:
            _start(run_single_rank if gpus else run_warm_rank, **config, cpus=cpus, gpus=gpus, max_calls=1).result()
            return
        except Mistake:
            raise
        except RuntimeError as error:
            if failures == max_failures:
                raise
            said = f"try {failures + 1} of {max_failures + 1} failed {seen(0)}, trying again"
            tell(f"{said}: {str(error).splitlines()[0][:200]}")


def _run_ranks(
    config: dict, ranks: int, cpus: float, gpus: float, max_failures: int, name: str, storage: Path, tell: Tell, seen: Seen
) -> None:
    connect()
    _check_room(ranks, cpus, gpus)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    storage.mkdir(parents=True, exist_ok=True)
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    TorchTrainer(
        run_rank,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=bool(gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=f"{name}-{time.time_ns()}",  # a name used twice would resume Ray Train's own state
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[stop_at_mistakes(tell, seen)],
        ),
    ).fit()


def _start(function: Any, target: str, payload: Mapping, settings: dict, cpus: float, gpus: float, **options: Any) -> Running:
    connect()
    import ray

    _check_room(1, cpus, gpus)
    given = {name: value for name, value in options.items() if value is not None}
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, **given)(function).options(name=target)
    return Running(remote.remote(target, dict(payload), settings), target)


def _settings(cpus: float, env: Mapping[str, str] | None) -> dict[str, str]:
    """Variables of a worker: its threads, what the job was given, what the caller adds."""
    names = [*json.loads(os.environ.get("WINNOW_PASSED_ON", "[]")), *PASSED_ON]
    passed = {name: os.environ[name] for name in names if name in os.environ}
    return {**dict.fromkeys(THREADS, str(max(1, int(cpus)))), **passed, **(env or {})}


def _check_room(ranks: int, cpus: float, gpus: float) -> None:
    """What can never be placed would wait for ever; only a cluster that grows by itself may be asked for more."""
    if not os.environ.get("WINNOW_LOCAL"):
        return
    import ray

    for name, wanted in (("CPU", ranks * cpus), ("GPU", ranks * gpus)):
        there = ray.cluster_resources().get(name, 0)
        if wanted > there:
            raise ValueError(f"{ranks} x {wanted / ranks:g} {name} were asked for, this machine has {there:g}")


def _cause(error: BaseException, seen: Seen) -> str:
    """Ray Train wraps what a rank raised."""
    if failures := getattr(error, "worker_failures", None):
        rank, failure = culprit(failures)
        return f"{said_of(rank, failure, seen)}\n{failure}"
    inner = getattr(error, "controller_failure", None) or error
    return str(inner) if isinstance(inner, RuntimeError) else f"{type(inner).__name__}: {inner}"
