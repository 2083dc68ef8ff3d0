"""Peak memory of a walk at 48 layers against 6, each in a process of its own.

One block and its activations are all a walk may hold, whatever the depth. What counts is the resident set that the
kernel saw, interpreter and torch included, since "one block in memory" was true of the code long before it was of the
process. Weights are wide enough for 42 more layers to show, and the activations have a budget that is a fraction of
them and of the checkpoint, so most lie on disk; the growth by walking alone is told beside the ratio.

    python -m tests.bench.bench_walker_memory LAYERS WIDTH      one walk: MiB before, MiB at the peak, MiB of the model
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.machine import FRUGAL
from tests.bench.measured import Measured

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**FRUGAL, "OMP_NUM_THREADS": "1"}  # memory as walks run
WIDTH, SHALLOW, DEEP = 512, 6, 48
BUDGET = 4 << 20


def measure() -> list[Measured]:
    before, peak, size = {}, {}, {}
    for layers in (SHALLOW, DEEP):
        before[layers], peak[layers], size[layers] = map(float, child(str(layers), str(WIDTH)).split()[-3:])
    growth = {layers: peak[layers] - before[layers] for layers in peak}
    return [
        Measured(
            "walker_memory",
            peak[DEEP] / peak[SHALLOW],
            1.15,
            f"peak RSS at {DEEP} / {SHALLOW} layers, {peak[DEEP]:.0f} / {peak[SHALLOW]:.0f} MiB; walking adds "
            f"{growth[DEEP]:.0f} / {growth[SHALLOW]:.0f}, the models weigh {size[DEEP]:.0f} / {size[SHALLOW]:.0f}, the "
            f"activations' budget is {BUDGET >> 20}",
        )
    ]


def child(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.bench.bench_walker_memory", *arguments]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def walk_once(layers: int, width: int) -> None:
    """The model is built by a child, so that this process never held it; a tiny walk pays for imports beforehand."""
    from tests.tasks import models_zoo as zoo

    with tempfile.TemporaryDirectory() as scratch:
        source, warm = Path(scratch) / "in", Path(scratch) / "warm"
        child("build", str(layers), str(width), str(source))
        prune(zoo.save("llama", warm, layers=1), zoo.batches())
        before = peak_mebibytes()
        output = prune(source, zoo.batches(count=16, rows=8, length=64))
        print(before, peak_mebibytes(), sum(file.stat().st_size for file in output.glob("*.safetensors")) / 2**20)


def prune(source: Path, batches: list) -> Path:
    from tasks.calibrate.walk import walk
    from tasks.methods import build
    from tasks.models.stream.activations import MemoryBudget
    from tasks.models.stream.blocks import BlockStream

    output = source.with_name(f"{source.name}-out")
    memory = MemoryBudget(BUDGET, source.with_name(f"{source.name}-activations"))
    walk(BlockStream(source, output), batches, build("pruners", "wanda"), sparsity=0.5, memory=memory)
    return output


def peak_mebibytes() -> float:
    """The kernel's high-water mark of this program; getrusage's outlives exec, so a child starts at its parent's peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def build_model(layers: int, width: int, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.models.files.checkpoint import save_model
    from tests.tasks import models_zoo as zoo

    config = zoo.config("llama", layers, hidden_size=width, intermediate_size=3 * width, num_attention_heads=8)
    torch.manual_seed(0)
    save_model(AutoModelForCausalLM.from_config(config).state_dict(), config, directory)


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build_model(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        walk_once(int(sys.argv[1]), int(sys.argv[2]))
