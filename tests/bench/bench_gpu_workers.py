"""On several GPUs: seconds per block of a 7B model's calibration with that many workers, of the seconds with one, and whether
the masks are the same. Workers are the other ranks of torchrun. Without two GPUs there is nothing to measure.

``python -m tests.bench.bench_gpu_workers wanda 1 2 4`` measures one method.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.bench_gpu_pruning import BATCH, BLOCKS, LENGTH, SEQUENCES, WIDE, build
from tests.bench.measured import Measured

METHODS = ("wanda", "sparsegpt")
BAR = {4: 1 / 3}


def measure() -> list[Measured]:
    import torch

    most = torch.cuda.device_count()
    counts = [count for count in (1, 2, 4, 8) if count <= most]
    return [line for method in METHODS for line in of_method(method, counts)] if most > 1 else []


def of_method(method: str, counts: list[int]) -> list[Measured]:
    import torch

    card, lines = torch.cuda.get_device_name(), []
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        build(where / "model", WIDE)
        found = {count: told(where, method, count) for count in counts}
        for count, seconds in found.items():
            differ, places = compared(where, method, counts[0], count)
            said = f"{seconds:.2f} s a block, of one's {found[counts[0]]:.2f} s; {differ:,} of {places:,} places differ; {card}"
            lines.append(Measured(f"gpu.workers.{method}.{count}", seconds / found[counts[0]], BAR.get(count), said))
    return lines


def told(where: Path, method: str, count: int) -> float:
    """Median seconds of a block."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "tests.bench.bench_gpu_workers", "--rank", str(where), method]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{method}, {count} ranks: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(where: Path, method: str, one: int, other: int) -> tuple[int, int]:
    """(places where the masks of both differ, places)."""
    import torch

    from tasks.formats.mask import load_masks

    differ = places = 0
    for file in sorted((where / f"{method}-{one}" / "parts").glob("masks-*")):
        theirs = load_masks(where / f"{method}-{other}" / "parts" / file.name)
        for name, mask in load_masks(file).items():
            differ += int((mask.keep.cuda() != theirs[name].keep.cuda()).sum())
            places += torch.Size(mask.shape).numel()
    return differ, places


def walked(where: Path, method: str, ranks: int) -> float:
    """On rank 0."""
    import torch

    from cluster.deepspeed.others import start_on_ranks
    from tasks.calibrate.data_parallel import deal
    from tasks.calibrate.walk import walk
    from tasks.methods import build as method_named
    from tasks.models.stream.blocks import BlockStream

    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(3, WIDE["vocab_size"], (2 * SEQUENCES, LENGTH), generator=generator).split(BATCH))
    common = {
        "model": str(where / "model"),
        "device": "cuda",
        "activation_bytes": 32 << 30,
        "method": ("pruners", {method: {}}),
    }
    payloads = [
        {**common, "scratch": str(where / f"worker-{number}"), "tokens": [tokens.tolist() for tokens in part]}
        for number, part in enumerate(deal(batches, ranks)[1:])
    ]
    workers = start_on_ranks("tasks.calibrate.worker:CalibrationWorker", payloads) if payloads else []
    output, ended = where / f"{method}-{ranks}", [time.perf_counter()]

    def enough(block: Any) -> None:
        ended.append(time.perf_counter())
        if len(ended) > BLOCKS:
            raise StopIteration

    stream = BlockStream(where / "model", output, "cuda", parts=output / "parts")
    chosen = method_named("pruners", method)
    with suppress(StopIteration):
        walk(stream, batches, chosen, sparsity=0.5, pattern="2:4", workers=workers, on_block=enough)
    return statistics.median(later - earlier for earlier, later in pairwise(ended[1:]))


def main() -> None:
    if sys.argv[1] != "--rank":
        for line in of_method(sys.argv[1], [int(count) for count in sys.argv[2:]]):
            print(f"{line.name}: {line.value:.3f} (at most {line.bar}) {line.compared}")
        return
    import torch

    from cluster.deepspeed.others import helped, serve
    from cluster.deepspeed.rank import leave

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    if rank:
        serve("cuda")
    else:
        with helped("cuda") if ranks > 1 else nullcontext():
            print(json.dumps(walked(Path(sys.argv[2]), sys.argv[3], ranks)))
    leave(0)


if __name__ == "__main__":
    main()
