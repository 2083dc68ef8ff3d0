"""GPTQ and AWQ at W4A16 against llm-compressor's: the same model, the same tokens, the same machine.

Of a random Llama of 110M parameters and, by ``make bench-peers DATA=DIR`` with wikitext2_*.txt in DIR, of SmolLM2-135M,
each as it is and pruned to 2:4 by ours. Each side is a process as in bench_peers.py, from a checkpoint to the one it
writes; the sides take turns, and the mean of ours before and after theirs counts. Ours ends with what the peer does not do:
another process reads the export back with plain transformers and compares; its memory is told beside ours, its time is in
ours. Groups are of 64, as 128 does not divide SmolLM2's width of 576. Both compute in the dtype that the checkpoint has.

    python -m tests.bench.bench_quantize_peers MODEL TOKENS.npy OUTPUT METHOD GROUP      our side, once
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tasks.methods import build as method_named
from tasks.models.files.layout import MASKS
from tests.bench.bench_peers import BATCH, PEERS, THEIRS, artifacts, compare, leave_tokens, perplexity, run
from tests.bench.bench_peers import OURS as PRUNER
from tests.bench.bench_walker_memory import ROOT, peak_mebibytes
from tests.bench.measured import Measured

OURS = [sys.executable, "-m", "tests.bench.bench_quantize_peers"]
TURNS = ((OURS, "ours", ()), (THEIRS, "theirs", ("1",)), (OURS, "ours", ()))
METHODS, GROUP = ("gptq", "awq"), "64"
REAL = ROOT / "build" / "smollm2"
SEQUENCES, LENGTH = 32, 256  # of calibration text
SCORED = {"length": 512, "tokens": 1 << 14}


def measure() -> list[Measured]:
    if not PEERS.exists():
        print("quantize_peers: llm-compressor is not installed, run make bench-peers", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as directory:
        random, real = (Path(directory) / name for name in ("random", "smollm2"))
        subprocess.run([*PRUNER, "build", str(random)], cwd=ROOT, check=True)
        lines = both("random", random, "magnitude")
        texts = os.environ.get("DATA")
        if not texts or not REAL.exists():
            print("quantize_peers: SmolLM2-135M is measured by make bench-peers DATA=DIR", file=sys.stderr)
            return lines
        return lines + both("smollm2", real, "sparsegpt", prepare(real, Path(texts)))


def both(title: str, where: Path, pruner: str, data: Path | None = None) -> list[Measured]:
    """The lines of a model as it is and at 2:4."""
    lines = [line for method in METHODS for line in contest(title, where, method, data)]
    sparse = pruned(where, pruner)
    return lines + [line for method in METHODS for line in contest(f"{title}.2:4", sparse, method, data)]


def contest(title: str, where: Path, method: str, data: Path | None = None) -> list[Measured]:
    """Time and memory; of a model with masks what became of them; with data, perplexity on its held-out text."""
    name = f"peers.{title}.{method}"
    first, theirs, last = (turn(side, where, method, output, *more) for side, output, more in TURNS)
    used, *ours, reader = ((before + after) / 2 for before, after in zip(first, last, strict=True))
    seconds, memory = compare(name, tuple(ours), theirs[1:])
    processor = f"seconds of processors, imports and reading back among them, {used:.0f} / {theirs[0]:.0f}"
    lines = [seconds, Measured(f"{name}.processor", used / theirs[0], None, processor)]
    lines.append(replace(memory, compared=f"{memory.compared}; what reads ours back {reader:.0f}"))
    lines += [broken(name, where)] if (where / "model" / MASKS).exists() else []
    return lines + ([quality(name, where, data)] if data else [])


def turn(side: list[str], where: Path, method: str, output: str, *more: str) -> tuple[float, ...]:
    """Seconds of processors, then what the side tells."""
    before = os.times()
    told = run(side, where, method, GROUP, output, *more)
    after = os.times()
    return (sum(after[2:4]) - sum(before[2:4]), *told)


def broken(name: str, where: Path) -> Measured:
    """The share of groups that keep their pattern no more, in the files."""
    from tasks.evaluators import Candidate

    theirs = where / "theirs" / MASKS  # it knows of none; the promise is that of the model it was given
    theirs.parent.mkdir(exist_ok=True)
    shutil.copyfile(where / "model" / MASKS, theirs)
    pattern = method_named("evaluators", "pattern")
    lost = [100 - 100 * pattern.measure(Candidate(where / side, where))["pattern_holds"] for side in ("ours", "theirs")]
    compared = f"2:4 groups broken by ours / llm-compressor, {lost[0]:.2f} / {lost[1]:.2f} %"
    return Measured(f"{name}.mask", lost[0], 0, compared, "%")


def quality(name: str, where: Path, data: Path) -> Measured:
    """Of a model with masks against theirs with the broken groups mended, as what it revived buys it quality."""
    before, ours, theirs = (perplexity(where / side, data, SCORED) for side in ("model", "ours", "theirs"))
    compared = f"held-out perplexity ours / llm-compressor, {ours:.2f} / {theirs:.2f}; {before:.2f} before"
    if (where / "model" / MASKS).exists():
        kept = perplexity(masked(where), data, SCORED)
        compared = f"held-out perplexity ours / llm-compressor under the mask, {ours:.2f} / {kept:.2f}"
        compared += f"; as it left it {theirs:.2f}; {before:.2f} before"
        theirs = kept
    return Measured(f"{name}.perplexity", ours / theirs, 1.005, compared)


def masked(where: Path) -> Path:
    """Theirs, dequantized, with zeros where the mask of the model it was given has them."""
    from tasks.formats.mask import load_masks
    from tasks.models.files.checkpoint import save_model, skeleton
    from tasks.models.files.quantized import StoredWeights

    weights, masks = StoredWeights(where / "theirs"), load_masks(where / "model" / MASKS)
    state = {name: weights.read(name) for name in weights.names()}
    for name, mask in masks.items():
        state[name] = state[name].masked_fill(~mask.keep, 0)
    shutil.rmtree(where / "masked", ignore_errors=True)
    save_model(state, skeleton(where / "model").config, where / "masked")
    return where / "masked"


def pruned(where: Path, method: str) -> Path:
    """The model at 2:4 by ours, beside the same tokens."""
    shutil.rmtree(where / "ours", ignore_errors=True)  # of a contest before
    run(PRUNER, where, method, "2:4", "ours")
    sparse = where.with_name(f"{where.name}-pruned")
    sparse.mkdir()
    shutil.move(where / "ours", sparse / "model")
    shutil.copyfile(where / "tokens.npy", sparse / "tokens.npy")
    return sparse


def prepare(where: Path, texts: Path) -> Path:
    """Leave SmolLM2-135M and calibration tokens of WikiText-2 where a contest looks for them; the data."""
    where.mkdir()
    (where / "model").symlink_to(REAL)
    valid, test = (str(texts / f"wikitext2_{split}.txt") for split in ("valid", "test"))
    corpus = {"train": valid, "calibration": valid, "heldout": test}
    stages = [{"prepare": {"corpus": corpus, "tokenizer": {"checkpoint": str(REAL)}}}]
    (data,) = artifacts(where, {"name": "peers", "stages": stages})
    leave_tokens(where, data, SEQUENCES, LENGTH)
    return data


def quantize(model: str, tokens: str, output: str, method: str, group: str) -> None:
    """As the stage does it: a walk to a dequantized model, its export, and the gate."""
    import numpy as np
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401  theirs is imported before the clock starts, too

    from tasks.calibrate.walk import walk
    from tasks.models.export import export_compressed
    from tasks.models.files.checkpoint import load_extras
    from tasks.models.files.gate import READER
    from tasks.models.stream.blocks import BlockStream

    rest, begun = peak_mebibytes(), time.perf_counter()
    READER.start()
    quantizer = method_named("quantizers", {method: {"group_size": int(group)}})
    batches = list(torch.from_numpy(np.load(tokens)).split(BATCH))
    shutil.rmtree(output, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=Path(output).parent) as folder:
        solved = Path(folder) / "solved"
        walk(BlockStream(Path(model), solved), batches, quantizer)
        export_compressed(solved, load_extras(solved), quantizer.scheme_of, Path(output), elsewhere=True)
    seconds = time.perf_counter() - begun
    READER.stop()
    print(seconds, rest, peak_mebibytes(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


if __name__ == "__main__":
    quantize(*sys.argv[1:])
