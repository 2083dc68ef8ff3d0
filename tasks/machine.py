"""What the machine at hand gives a stage: device and threads, an engine, and workers where it is part of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks.context import Execution
from tasks.workers import Worker, start_here

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from tasks.train.birth import Weights
    from tasks.train.engine import Engine

# One heap for all threads, in huge pages. With what is free in it given back before each block (tasks/models/stream), a walk
# holds one block whatever the depth. Giving back each tensor as it is freed costs a fifth more time.
FRUGAL = {"MALLOC_ARENA_MAX": "1", "THP_MEM_ALLOC_ENABLE": "1"}


def execution_of(fields: dict[str, Any]) -> Execution:
    """The fields a profile gives, completed by what this process is: its rank, its device, its threads."""
    import torch

    device = fields.get("device", "auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = fields.get("precision", "auto")
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    compiled = fields.get("compile", False)
    if compiled == "auto":
        compiled = device == "cuda"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if fields.get("threads"):
        torch.set_num_threads(fields["threads"])
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    of_this_process = {"device": device, "precision": precision, "compile": compiled, "rank": rank, "ranks": ranks}
    return Execution(**{**fields, **of_this_process})


def make_engine(
    execution: Execution,
    model: Module,
    optimizer: Optimizer,
    clipping: float,
    accumulation: int,
    weights: Weights | None = None,
) -> Engine:
    """The engine the profile names, behind the one protocol."""
    precision = {"float32": "fp32", "bfloat16": "bf16"}[execution.precision]
    if execution.engine == "deepspeed":
        from cluster.deepspeed.engine import DeepSpeedEngine

        how = (clipping, execution.device, precision, execution.zero, accumulation)
        return DeepSpeedEngine(model, optimizer, *how, weights=weights, offload=execution.offload == "optimizer")
    from tasks.train.engine import TorchEngine

    return TorchEngine(model, optimizer, clipping, execution.device, precision)


@contextmanager
def own_linear() -> Iterator[None]:
    """For a stage: under ZeRO-3 DeepSpeed puts a linear map of its own in the place of torch's, and leaves it there for all
    that this process computes afterwards."""
    from torch.nn import functional

    linear = functional.linear
    try:
        yield
    finally:
        functional.linear = linear


def start_workers(resources: Mapping[str, Any], target: str, payloads: list[dict[str, object]]) -> list[Worker]:
    """An object of ``target`` per payload on workers of the cluster, each with the stage's own resources; on the other ranks of
    torchrun; in this process where there is neither."""
    from cluster.deepspeed.others import helping, start_on_ranks
    from cluster.ray.workers import on_cluster, start_actor

    if helping():
        return [*start_on_ranks(target, payloads)]
    if not on_cluster():
        return start_here(target, payloads)
    return [start_actor(target, given, resources["cpus"], resources["gpus"], FRUGAL) for given in payloads]
