"""Wanda and SparseGPT against llm-compressor: the same model, the same tokens, the same machine.

Time and memory are those of a random Llama of 110M parameters, perplexity that of the one claims/prune.yaml trains.
Its environment cannot be ours, so ``make bench-peers`` builds one for it and runs this; without it nothing is measured.
Each side is a process of its own that reads a checkpoint, prunes it and writes it on all cores, timed by the wall from
after its imports: give it a quiet machine. Its peak memory is the kernel's high-water mark, interpreter and all; what a
process holds before it starts is told beside it. The peer runs as its users run it, one sequence at a time unless told,
and once more with our batch. Both make two passes through every block, which is most of what Wanda costs.

    python -m tests.bench.bench_peers MODEL TOKENS.npy OUTPUT METHOD PATTERN      our side, once
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tasks.machine import FRUGAL
from tests.bench.bench_walker_memory import ROOT, peak_mebibytes
from tests.bench.measured import Measured

PEERS = ROOT / "build" / "peers" / "bin" / "python"
OURS = [sys.executable, "-m", "tests.bench.bench_peers"]
THEIRS = [str(PEERS), str(ROOT / "tests" / "bench" / "peer.py")]
SIZES = {
    "vocab_size": 16_000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 512,
}
SEQUENCES, LENGTH, BATCH = 8, 256, 4
TRAINED = ROOT / "flows" / "recipes" / "claims" / "prune.yaml"
CONTESTS = [(method, pattern) for method in ("wanda", "sparsegpt") for pattern in ("unstructured", "2:4")]


def measure() -> list[Measured]:
    if not PEERS.exists():
        print("peers: llm-compressor is not installed, run make bench-peers", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as directory:
        random, trained = (Path(directory) / name for name in ("random", "trained"))
        subprocess.run([*OURS, "build", str(random)], cwd=ROOT, check=True)
        data = train(trained)
        dense = perplexity(trained / "model", data, scored())
        costs = [line for contest in CONTESTS for line in cost(random, *contest)]
        return costs + [quality(trained, data, dense, *contest) for contest in CONTESTS]


def cost(where: Path, method: str, pattern: str) -> list[Measured]:
    ours = run(OURS, where, method, pattern, "ours")
    default = run(THEIRS, where, method, pattern, "theirs", "1")
    alike = run(THEIRS, where, method, pattern, "theirs", str(BATCH))
    name = f"peers.{method}.{pattern}"
    return compare(name, ours, default) + compare(f"{name}.batch{BATCH}", ours, alike)


def train(where: Path) -> Path:
    """Leave a trained model and calibration tokens where a contest looks for them; its data."""
    recipe = yaml.safe_load(TRAINED.read_text())
    prune = next(stage["prune"] for stage in recipe["stages"] if "prune" in stage)
    where.mkdir()
    data, model = artifacts(where, {"name": "trained", "model": recipe["model"], "stages": recipe["stages"][:2]})
    (where / "model").symlink_to(model)
    leave_tokens(where, data, prune["sequences"], prune["length"])
    return data


def artifacts(where: Path, recipe: dict[str, Any]) -> list[Path]:
    """What the stages of a recipe make, in order; they run in a process and a home of their own."""
    (where / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "flows.cli", "run", "--here", "--json", str(where / "recipe.yaml")]
    environment = {**os.environ, "WINNOW_HOME": str(where / "home")}
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [where / "home" / "store" / stage["address"] for stage in json.loads(done.stdout)["stages"]]


def leave_tokens(where: Path, data: Path, sequences: int, length: int) -> None:
    """Calibration sequences of a prepare artifact, as both sides read them."""
    import numpy as np

    from tasks.data.tokens import calibration_batches

    drawn = next(calibration_batches(data, sequences, length, batch=sequences, seed=0))
    np.save(where / "tokens.npy", drawn.tokens.numpy())


def quality(where: Path, data: Path, dense: float, method: str, pattern: str) -> Measured:
    run(OURS, where, method, pattern, "ours")
    run(THEIRS, where, method, pattern, "theirs", "1")
    ours, theirs = (perplexity(where / side, data, scored()) for side in ("ours", "theirs"))
    compared = f"held-out perplexity ours / llm-compressor, {ours:.2f} / {theirs:.2f}; {dense:.2f} dense"
    return Measured(f"peers.{method}.{pattern}.perplexity", ours / theirs, 1.005, compared)


def scored() -> dict[str, Any]:
    """The fields of perplexity, as the recipe of the trained model has them."""
    return yaml.safe_load(TRAINED.read_text())["evaluate"]["perplexity"]


def perplexity(model: Path, data: Path, fields: dict[str, Any]) -> float:
    from tasks.evaluators import Candidate
    from tasks.methods import build as method_named

    return method_named("evaluators", {"perplexity": fields}).measure(Candidate(model, data))["perplexity"]


def compare(name: str, ours: tuple[float, ...], theirs: tuple[float, ...]) -> list[Measured]:
    """From (seconds, MiB at rest, MiB at the peak) of each."""
    (time_ours, rest_ours, peak_ours), (time_theirs, rest_theirs, peak_theirs) = ours, theirs
    rest = f"; at rest {rest_ours:.0f} / {rest_theirs:.0f}"
    return [
        Measured(f"{name}.time", time_ours / time_theirs, 0.5, f"ours / llm-compressor, {time_ours:.1f} / {time_theirs:.1f} s"),
        Measured(f"{name}.memory", peak_ours / peak_theirs, 0.7, f"peak RSS {peak_ours:.0f} / {peak_theirs:.0f} MiB{rest}"),
    ]


def run(command: list[str], where: Path, method: str, how: str, output: str, *more: str) -> tuple[float, ...]:
    arguments = [str(where / "model"), str(where / "tokens.npy"), str(where / output), method, how, *more]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if output == "ours":
        environment |= FRUGAL
    folder = ROOT if output == "ours" else where  # theirs must not find our packages
    done = subprocess.run(command + arguments, env=environment, cwd=folder, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{output} {method} {how} ended with {done.returncode}: {done.stderr[-1000:]}")
    return tuple(map(float, done.stdout.splitlines()[-1].split()))


def build(where: Path) -> None:
    """A random model and random tokens."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tasks.models.files.checkpoint import save_model

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    save_model(model.state_dict(), model.config, where / "model")
    tokens = np.random.default_rng(0).integers(3, SIZES["vocab_size"], size=(SEQUENCES, LENGTH))
    np.save(where / "tokens.npy", tokens)


def prune(model: str, tokens: str, output: str, method: str, pattern: str) -> None:
    import numpy as np
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401  theirs is imported before the clock starts, too

    from tasks.calibrate.walk import walk
    from tasks.methods import build as method_named
    from tasks.models.stream.blocks import BlockStream

    rest, begun = peak_mebibytes(), time.perf_counter()
    batches = list(torch.from_numpy(np.load(tokens)).split(BATCH))
    walk(BlockStream(Path(model), Path(output)), batches, method_named("pruners", method), sparsity=0.5, pattern=pattern)
    print(time.perf_counter() - begun, rest, peak_mebibytes())


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        prune(*sys.argv[1:])
