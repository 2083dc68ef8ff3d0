"""On several GPUs: seconds per block of a 7B model's calibration with that many workers, of the seconds with one, by what they
go to, and whether masks and weights are the same. Workers are the other ranks of torchrun. Without two GPUs there is nothing
to measure.

``python -m tests.bench.bench_gpu_workers wanda,sparsegpt 1 2 4`` measures two methods; without a GPU a tiny model over gloo.

What the first rank's time goes to: passes over its own sequences; solving its part; ``observe``, ``solve`` and ``advance`` are
what it spends on sending to the others, waiting for them and receiving, at these three; reading and writing what was not done
beside; and the rest, which is adding up, checking, packing and assigning.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.bench_gpu_pruning import BATCH, LENGTH, SEQUENCES, WIDE, build
from tests.bench.measured import Measured

METHODS = ("wanda", "sparsegpt")
BAR = {4: 1 / 3}
TINY = {**WIDE, "hidden_size": 256, "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 4}


def measure() -> list[Measured]:
    import torch

    most = torch.cuda.device_count()
    return of_methods(METHODS, [count for count in (1, 2, 4, 8) if count <= most]) if most > 1 else []


def of_methods(methods: tuple[str, ...], counts: list[int]) -> list[Measured]:
    """One start of torchrun for all of it: the ranks that a walk has no part for wait."""
    lines = []
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(max(counts))]
        command += ["-m", "tests.bench.bench_gpu_workers", "--rank", directory, ",".join(methods), *map(str, counts)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for method in methods:
        of_it = {walk["count"]: walk for walk in found if walk["method"] == method}
        one = of_it[counts[0]]["seconds"]
        for count, walk in of_it.items():
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in walk["parts"].items())
            said = f"{walk['seconds']:.2f} s a block ({parts}), {one / walk['seconds']:.2f} times as fast as {counts[0]}; "
            said += (
                f"{walk['masks']:,} places of masks and {walk['weights']:,} weights differ of {walk['of']:,}; {walk['card']}"
            )
            lines.append(Measured(f"gpu.workers.{method}.{count}", walk["seconds"] / one, BAR.get(count), said))
    return lines


class Parts:
    """Seconds since :meth:`next`, by the part of the work whose functions are wrapped; what runs within another part is its."""

    def __init__(self, device: str) -> None:
        self.device, self.inside = device, False
        self.blocks: list[dict[str, float]] = [{}]

    def next(self) -> None:
        self.blocks.append({})

    @contextmanager
    def of(self, owner: Any, name: str, part: str | Callable[..., str]) -> Iterator[None]:
        """``owner.name`` counts for ``part``, which may depend on its arguments."""
        function = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            if self.inside:
                return function(*given, **named)
            self.inside, begun = True, self._now()
            try:
                return function(*given, **named)
            finally:
                called = part if isinstance(part, str) else part(*given)
                seconds = self.blocks[-1]
                self.inside, seconds[called] = False, seconds.get(called, 0.0) + self._now() - begun

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, function)

    def _now(self) -> float:
        import torch

        if self.device == "cuda":
            torch.cuda.current_stream().synchronize()  # not what is copied beside
        return time.perf_counter()


def walked(where: Path, method: str, ranks: int, device: str, batches: list) -> tuple[float, dict[str, float]]:
    """On rank 0: the median seconds of a block but the first, and those of its parts."""
    from contextlib import ExitStack

    from cluster.deepspeed import others
    from tasks.calibrate import opened
    from tasks.calibrate import walk as walking
    from tasks.calibrate.data_parallel import deal
    from tasks.methods import build as method_named
    from tasks.models.stream.blocks import BlockStream

    common = {
        "model": str(where / "model"),
        "device": device,
        "activation_bytes": 32 << 30,
        "method": ("pruners", {method: {}}),
    }
    payloads = [
        {**common, "scratch": str(where / f"worker-{number}"), "tokens": [tokens.tolist() for tokens in part]}
        for number, part in enumerate(deal(batches, ranks)[1:])
    ]
    workers = others.start_on_ranks("tasks.calibrate.worker:CalibrationWorker", payloads) if payloads else []
    output, parts, ended = where / f"{method}-{ranks}", Parts(device), [time.perf_counter()]
    chosen = method_named("pruners", method)

    def told(block: Any) -> None:
        ended.append(parts._now())
        parts.next()

    with ExitStack() as stack:
        for owner, name, part in [
            (opened, "observe", "passes"),
            (walking, "propagate", "passes"),
            (type(chosen), "solve", "solving"),
            (others, "send", lambda value, rank: value[2]),
            (others.Asked, "result", lambda asked: asked.call[2]),
            (BlockStream, "read", "reading"),
            (BlockStream, "write", "writing"),
        ]:
            stack.enter_context(parts.of(owner, name, part))
        stream = BlockStream(where / "model", output, device, parts=output / "parts")
        walking.walk(stream, batches, chosen, sparsity=0.5, pattern="2:4", workers=workers, on_block=told)
    seconds = [later - earlier for earlier, later in pairwise(ended)]
    blocks = [{**block, "rest": whole - sum(block.values())} for block, whole in zip(parts.blocks, seconds, strict=False)][1:]
    return statistics.median(seconds[1:]), {
        name: statistics.median(block.get(name, 0.0) for block in blocks) for name in blocks[0]
    }


def compared(one: Path, other: Path, device: str) -> tuple[int, int, int]:
    """(places of masks that differ, weights that differ, places)."""
    from safetensors.torch import load_file

    from tasks.formats.mask import load_masks
    from tasks.models.files.layout import MASKS

    masks, theirs = load_masks(one / MASKS), load_masks(other / MASKS)
    places = sum(int((mask.keep.to(device) != theirs[name].keep.to(device)).sum()) for name, mask in masks.items())
    weights = 0
    for file in one.glob("model-*.safetensors"):
        mine, its = load_file(file, device), load_file(other / file.name, device)
        weights += sum(int((value != its[name]).sum()) for name, value in mine.items())
    return places, weights, sum(mask.numel for mask in masks.values())


def rank_zero(where: Path, methods: list[str], counts: list[int], device: str) -> None:
    import torch

    on_card = device == "cuda"
    sequences, length = (2 * SEQUENCES, LENGTH) if on_card else (32, 128)
    build(where / "model", WIDE if on_card else TINY, device)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randint(3, WIDE["vocab_size"], (sequences, length), generator=generator).split(BATCH))
    for method in methods:
        for count in counts:
            seconds, parts = walked(where, method, count, device, batches)
            masks, weights, places = compared(where / f"{method}-{counts[0]}", where / f"{method}-{count}", device)
            found = {"method": method, "count": count, "seconds": seconds, "parts": parts, "masks": masks, "weights": weights}
            print(json.dumps({**found, "of": places, "card": torch.cuda.get_device_name() if on_card else "CPU"}), flush=True)


def main() -> None:
    if sys.argv[1] != "--rank":
        for line in of_methods(tuple(sys.argv[1].split(",")), [int(count) for count in sys.argv[2:]]):
            print(f"{line.name}: {line.value:.3f} (at most {line.bar}) {line.compared}")
        return
    import torch

    from cluster.deepspeed.others import helped, serve
    from cluster.deepspeed.rank import leave

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank)
    if rank:
        serve(device)
    else:
        with helped(device) if ranks > 1 else nullcontext():
            rank_zero(Path(sys.argv[2]), sys.argv[3].split(","), [int(count) for count in sys.argv[4:]], device)
    leave(0)


if __name__ == "__main__":
    main()
