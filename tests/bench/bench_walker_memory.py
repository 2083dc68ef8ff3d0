"""Measure that a walk's memory does not grow with depth: peak RSS at 6 and at 24 layers, each in its own process.

Run as a script: ``python tests/bench/bench_walker_memory.py [WIDTH]``. The ratio of the peaks must stay under 1.15. As
the interpreter and torch weigh more than a small block, the growth above what a process weighs before the walk is
printed too, beside the size of the model that a resident walk would hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1.15


def one(layers: int, width: int) -> None:
    """Build a model on disk in a child, then walk it here; prints RSS before, peak RSS and model size in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch) / "in", Path(scratch) / "out"
        subprocess.run([sys.executable, __file__, "build", str(layers), str(width), str(source)], check=True, cwd=ROOT)
        import resource

        from tasks.calibrate.walk import walk
        from tasks.methods import build
        from tasks.models.blocks import BlockStream
        from tests.tasks import models_zoo as zoo

        warm = zoo.save("llama", Path(scratch) / "warm", layers=1)
        walk(BlockStream(warm, Path(scratch) / "warm-out"), zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        walk(
            BlockStream(source, output),
            zoo.batches(count=4, rows=2, length=64),
            build("pruners", "wanda"),
            sparsity=0.5,
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = sum(file.stat().st_size for file in output.glob("*.safetensors")) / 2**20
        print(before, peak, size)


def build_model(layers: int, width: int, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.models.checkpoint import save_model
    from tests.tasks import models_zoo as zoo

    config = zoo.config("llama", layers, hidden_size=width, intermediate_size=3 * width, num_attention_heads=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    save_model(model.state_dict(), config, directory)


def main(width: int) -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    peaks, growths = {}, {}
    for layers in (6, 24):
        command = [sys.executable, __file__, "one", str(layers), str(width)]
        done = subprocess.run(command, check=True, env=environment, cwd=ROOT, capture_output=True, text=True)
        before, peaks[layers], size = map(float, done.stdout.split()[-3:])
        growths[layers] = peaks[layers] - before
        print(
            f"{layers:3d} layers: model {size:.1f} MiB, peak {peaks[layers]:.1f} MiB, {growths[layers]:+.1f} by walking"
        )
    ratio = peaks[24] / peaks[6]
    print(
        f"peak RSS ratio 24 / 6 layers: {ratio:.3f} (limit {LIMIT}); of the growth {growths[24] / growths[6]:.3f}"
    )
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["one"]:
        one(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["build"]:
        build_model(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
