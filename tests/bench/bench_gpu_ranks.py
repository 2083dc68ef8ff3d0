"""On several GPUs: tokens per second of training at each ZeRO stage against one of them with as many sequences each.

Every line is a torchrun of its own. A line says MFU, the most memory of a GPU and of the host (all ranks together), seconds
until the model was there and of its first step; where masks are held it counts dead weights that are not zero, on every rank,
and in one line seconds and bytes of a snapshot. Without two GPUs there is nothing to measure.

``python -m tests.bench.bench_gpu_ranks 1.3B 2 static --ranks 4`` measures one line, with ``--recompute selective`` or
``--offload`` another way.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from cluster.profile import cores
from tests.bench.bench_gpu_training import PEAKS, REGIMES, SIZES, STEPS, Size, flops, prepared, time_of
from tests.bench.measured import Measured

ALL = {**SIZES, "8B": Size(4096, 14336, 32, 32, 1, 2048, groups=8, words=128_256)}
HOW: dict[str, dict[str, Any]] = {"8B": {"recompute": "layer"}}
LINEAR = {"1.3B": (1, 1 / 0.9), "8B": (2, 1 / 0.85)}  # against so many ranks, and the most a step may take of theirs


def measure() -> list[Measured]:
    import torch

    most = torch.cuda.device_count()
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    if most < 2:
        return []
    found = {}
    for ranks in counts:
        for zero in (1, 2, 3):
            found["1.3B", zero, "dense", ranks] = line("1.3B", zero, "dense", ranks)
    for regime in ("static", "rigl", "sr_ste"):
        with tempfile.TemporaryDirectory() as place:
            more = ("--snapshot", place) if regime == "static" else ()
            found["1.3B", 2, regime, most] = line("1.3B", 2, regime, most, *more)
    for ranks in counts[1:]:
        found["8B", 3, "dense", ranks] = line("8B", 3, "dense", ranks)
    return [compared(key, told, found) for key, told in found.items()]


def line(size: str, zero: int, regime: str, ranks: int, *more: str) -> dict[str, Any]:
    """What the first rank tells; the ranks share this machine's cores."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "tests.bench.bench_gpu_ranks", size, str(zero), regime, *more]
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // ranks))}
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if told.returncode:
        raise RuntimeError(f"{size}, ZeRO {zero}, {regime}, {ranks} ranks: {told.stderr[-2000:]}")
    return json.loads(told.stdout.splitlines()[-1])


def compared(key: tuple[str, int, str, int], told: dict[str, Any], found: dict[tuple, dict[str, Any]]) -> Measured:
    size, zero, regime, ranks = key
    fewest, bar = LINEAR[size]
    if regime != "dense":
        base, bar, of = found[size, zero, "dense", ranks], REGIMES[regime][1], "dense"
    elif zero == 3 and size == "1.3B" and ranks > 1:
        base, bar, of = found[size, 2, "dense", ranks], 1 / 0.9, "ZeRO-2"
    else:
        base, of = found[size, zero, "dense", fewest], f"{fewest} GPU{'s' * (fewest > 1)}"
    if base is told or zero == 1:
        bar = None
    return Measured(f"gpu.{size}.zero{zero}.{regime}.{ranks}", told["seconds"] / base["seconds"], bar, f"of {of}: {said(told)}")


def said(told: dict[str, Any]) -> str:
    dead = f", {told['dead']} dead weights alive" if "dead" in told else ""
    snapshot = f", snapshot {told['saved']:.1f} s, {told['bytes'] / 2**30:.1f} GiB" if "saved" in told else ""
    return (
        f"{told['rate']:,.0f} token/s of {told['ranks']}, MFU {100 * told['mfu']:.1f} %, {told['gpu'] / 2**30:.1f} GiB a GPU, "
        f"host {told['host'] / 2**30:.0f} GiB, there after {told['born']:.0f} s, first step {told['first']:.0f} s{snapshot}"
        f"{dead}; {told['card']}"
    )


def rank(size_name: str, zero: int, regime: str, snapshot: Path | None, how: dict[str, Any]) -> dict[str, Any]:
    """On one rank: the collective numbers are equal on all of them."""
    import torch
    import torch.distributed as dist

    from cluster.deepspeed.rank import join

    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    join("cuda")
    size, begun = ALL[size_name], time.monotonic()
    fields = REGIMES.get(regime, ({}, None))[0]
    _, run, step = prepared(size, regime, fields, zero, **{**HOW.get(size_name, {}), **how})
    born = time.monotonic() - begun
    time_of(step, 1, warm=0)
    first = time.monotonic() - begun - born
    run.step = 40_001
    seconds = time_of(step, STEPS)
    gpu = torch.tensor(float(torch.cuda.max_memory_allocated()), device="cuda")
    dist.all_reduce(gpu, dist.ReduceOp.MAX)
    host = torch.tensor(float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024, device="cuda", dtype=torch.float64)
    dist.all_reduce(host)
    told: dict[str, Any] = {"seconds": seconds, "born": born, "first": first, "gpu": float(gpu), "host": float(host)}
    told |= {"dead": alive(run.engine)} if regime in ("static", "rigl") else {}
    told |= stored(run.engine, snapshot) if snapshot else {}
    card, ranks = torch.cuda.get_device_name(), dist.get_world_size()
    rate = ranks * size.batch * size.length / seconds
    peak = next((peak for name, peak in PEAKS.items() if name in card), float("nan"))
    return {**told, "rate": rate, "mfu": rate * flops(size) / peak / ranks, "ranks": ranks, "card": card}


def alive(engine: Any) -> int:
    """Held weights that are not zero, of all ranks' own pieces of them."""
    import torch
    import torch.distributed as dist

    mine = sum(int(engine._shards[name].master[held == 0].count_nonzero()) for name, held in engine._held.items())
    total = torch.tensor(mine, device="cuda")
    dist.all_reduce(total)
    return int(total)


def stored(engine: Any, directory: Path) -> dict[str, float]:
    """Seconds and bytes of a snapshot."""
    import torch.distributed as dist

    from tasks.train.attempts import register_attempt
    from tasks.train.snapshot import save

    if engine.rank == 0:
        register_attempt(directory, 0)
    dist.barrier()
    begun = time.monotonic()
    save(engine, directory, 1, {}, {})
    seconds = time.monotonic() - begun
    return {"saved": seconds, "bytes": sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=ALL)
    parser.add_argument("zero", type=int, choices=(1, 2, 3))
    parser.add_argument("regime")
    parser.add_argument("--ranks", type=int, help="start so many; as which one of them runs unless given")
    parser.add_argument("--snapshot", type=Path, help="save one there, and time it")
    parser.add_argument("--recompute", choices=("none", "selective", "layer"), help="nothing unless given; 8B: each layer")
    parser.add_argument("--offload", action="store_true", help="masters and moments on the host")
    asked = parser.parse_args()
    if asked.ranks:
        more = ["--snapshot", str(asked.snapshot)] if asked.snapshot else []
        more += ["--recompute", asked.recompute] if asked.recompute else []
        more += ["--offload"] if asked.offload else []
        print(said(line(asked.size, asked.zero, asked.regime, asked.ranks, *more)))
        return
    from cluster.deepspeed.rank import leave

    with closing(os.fdopen(os.dup(1), "w")) as out:
        how = {"recompute": asked.recompute} if asked.recompute else {}
        how |= {"offload": "optimizer"} if asked.offload else {}
        told = rank(asked.size, asked.zero, asked.regime, asked.snapshot, how)
        if os.environ["RANK"] == "0":
            out.write(json.dumps(told) + "\n")
    leave(0)


if __name__ == "__main__":
    main()
