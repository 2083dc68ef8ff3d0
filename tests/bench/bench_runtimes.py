"""A W4A16 export in vLLM, with its kernel for packed 4-bit weights, against the same export in transformers.

SmolLM2-135M as it is and at 2:4 by magnitude, both rounded to nearest in groups of 64, read by vLLM's CPU build
(``make bench-runtimes`` builds its environment). That kernel has no float32, so both runtimes compute in bfloat16, and the
measure is how far each is from transformers in float32: the mean absolute difference of the log-probabilities of a text's
tokens, the README's. A code read wrong, a scale of another group, or a row out of its place would be many times that far
off. What is said next is told besides: the likeliest token each time, so that rows part for good at their first near-tie.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.bench_walker_memory import ROOT
from tests.bench.measured import Measured

if TYPE_CHECKING:
    import torch

VLLM = ROOT / "build" / "runtimes" / "bin" / "python"
REAL = ROOT / "build" / "smollm2"
ROWS, LENGTH, COUNT = 4, 64, 16


def measure() -> list[Measured]:
    if not VLLM.exists() or not REAL.exists():
        print("runtimes: vLLM or SmolLM2-135M is not there, run make bench-runtimes", file=sys.stderr)
        return []
    from tasks.data.tokenizer import load_tokenizer

    ids = load_tokenizer(REAL).encode((ROOT / "README.md").read_text())
    rows = [ids[start : start + LENGTH] for start in range(0, ROWS * LENGTH, LENGTH)]
    with tempfile.TemporaryDirectory() as folder:
        pruned = Path(folder) / "pruned"
        walked(REAL, pruned, "pruners", "magnitude", sparsity=0.5, pattern="2:4")
        sources = {"dense": REAL, "2:4": pruned}
        return [line for name, source in sources.items() for line in compared(name, source, Path(folder) / name, rows)]


def compared(name: str, source: Path, folder: Path, rows: list[list[int]]) -> list[Measured]:
    import torch

    made = exported(source, folder)
    (folder / "rows.json").write_text(json.dumps(rows))
    command = [str(VLLM), str(ROOT / "tests" / "bench" / "peer_vllm.py"), str(made), str(folder / "rows.json"), str(COUNT)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    (exact, said), (rounded, own) = (asked(made, rows, dtype) for dtype in (torch.float32, torch.bfloat16))
    theirs = torch.tensor([row["seen"] for row in told])
    far, ours = (float((seen - exact).abs().mean()) for seen in (theirs, rounded))
    other, others = (differing(tokens, said) for tokens in ([row["said"] for row in told], own))
    distance = f"mean difference of log-probabilities to float32, vLLM / transformers in bfloat16, {far:.4f} / {ours:.4f}"
    tokens = f"tokens said next that differ from float32's, vLLM / transformers in bfloat16, {other} / {others}"
    return [
        Measured(f"runtimes.vllm.{name}.distance", far / ours, 2, distance),
        Measured(f"runtimes.vllm.{name}.tokens", 100 * other / (ROWS * COUNT), None, tokens, "%"),
    ]


def differing(one: list[list[int]], other: list[list[int]]) -> int:
    return sum(a != b for row, its in zip(one, other, strict=True) for a, b in zip(row, its, strict=True))


def asked(directory: Path, rows: list[list[int]], dtype: torch.dtype) -> tuple[torch.Tensor, list[list[int]]]:
    """Of every row the log-probability of each token but the first, and the likeliest COUNT tokens after it."""
    import torch

    from tasks.models.files.checkpoint import load_model

    model, tokens_BT = load_model(directory, dtype), torch.tensor(rows)
    with torch.inference_mode():
        scores_BTV = model(tokens_BT).logits.float().log_softmax(-1)
        greedy = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(tokens_BT)
        said_BT = model.generate(tokens_BT, attention_mask=mask, max_new_tokens=COUNT, **greedy)[:, LENGTH:]
    return scores_BTV[:, :-1].gather(-1, tokens_BT[:, 1:, None])[..., 0], said_BT.tolist()


def walked(source: Path, output: Path, shelf: str, method: str | dict, **how) -> None:
    from tasks.calibrate.walk import walk
    from tasks.methods import build
    from tasks.models.stream.blocks import BlockStream

    walk(BlockStream(source, output), [], build(shelf, method), **how)


def exported(source: Path, folder: Path) -> Path:
    from tasks.methods import build
    from tasks.models.export import export_compressed
    from tasks.models.files.checkpoint import load_extras

    method = {"round_to_nearest": {"group_size": 64}}
    walked(source, folder / "solved", "quantizers", method)
    scheme_of = build("quantizers", method).scheme_of
    export_compressed(folder / "solved", load_extras(folder / "solved"), scheme_of, folder / "made", elsewhere=True)
    return folder / "made"
