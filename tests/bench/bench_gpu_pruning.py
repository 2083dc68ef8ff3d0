"""On a GPU: seconds per block of a random Llama of more than 1B parameters, bf16, on 64 sequences of 2048 tokens.

Magnitude needs no statistics, so its block is what reading, two forward passes and writing cost; Wanda adds norms and
scores, SparseGPT Hessians, their factors and the column sweep, which GPTQ and the joint sweep share. Then blocks of a 7B
model, and the memory of its walk. Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.measured import Measured

if TYPE_CHECKING:
    from tasks.calibrate.report import BlockReport

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "max_position_embeddings": 2048,
}
WIDE = {**SIZES, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 4, "num_key_value_heads": 32}
SEQUENCES, LENGTH, BATCH, BLOCKS = 64, 2048, 4, 4  # blocks are alike: four are enough to time one
CONTESTS = [
    ("magnitude", "unstructured"),
    ("wanda", "unstructured"),
    ("wanda", "2:4"),
    ("sparsegpt", "unstructured"),
    ("sparsegpt", "2:4"),
    ("gptq", "unstructured"),
    ("joint", "2:4"),
]
QUANTIZERS = ("gptq", "joint")


def measure() -> list[Measured]:
    import torch

    if not torch.cuda.is_available():
        return []
    card, lines = torch.cuda.get_device_name(), []
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        parameters = build(where / "model", SIZES)
        for method, pattern in CONTESTS:
            torch.cuda.reset_peak_memory_stats()
            seconds = prune(where, method, pattern)
            peak = torch.cuda.max_memory_allocated() / 2**30
            said = f"{card}, {parameters / 1e9:.2f}B parameters, median of {len(seconds)} blocks, {SEQUENCES} x {LENGTH} tokens"
            said += f"; peak GPU memory {peak:.1f} GiB"
            what = "quantize" if method in QUANTIZERS else "prune"
            lines.append(Measured(f"gpu.{what}.{method}.{pattern}", statistics.median(seconds), None, said, "s"))
    return lines + [wide(card, method) for method in ("wanda", "sparsegpt")]


def wide(card: str, method: str) -> Measured:
    """A block of a 7B model, and the memory it takes."""
    import torch

    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        build(where / "model", WIDE)
        torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(prune(where, method, "2:4", 2 * SEQUENCES))
        peak = torch.cuda.max_memory_allocated() / 2**30
    said = f"{card}, a 7B block, {2 * SEQUENCES} x {LENGTH} tokens; peak GPU memory {peak:.1f} GiB"
    return Measured(f"gpu.prune.7B.{method}.2:4", seconds, None, said, "s")


def build(directory: Path, sizes: dict[str, int], device: str = "cuda") -> int:
    """Write the model; its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.models.files.checkpoint import save_model

    torch.manual_seed(0)
    config = LlamaConfig(**sizes)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    config.dtype = torch.bfloat16
    save_model({name: value.cpu() for name, value in model.state_dict().items()}, config, directory)
    return sum(parameter.numel() for parameter in model.parameters())


def prune(where: Path, method: str, pattern: str, sequences: int = SEQUENCES) -> list[float]:
    """Seconds of every block."""
    import torch

    from tasks.calibrate.walk import walk
    from tasks.methods import build as method_named
    from tasks.models.stream.blocks import BlockStream

    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(3, SIZES["vocab_size"], (sequences, LENGTH), generator=generator).split(BATCH)
    stream = BlockStream(where / "model", where / f"{method}-{pattern.replace(':', '')}", "cuda")
    seconds: list[float] = []

    def enough(block: BlockReport) -> None:
        seconds.append(block.seconds)
        if len(seconds) == BLOCKS:
            raise StopIteration

    chosen = method_named("quantizers" if method in QUANTIZERS else "pruners", method)
    with suppress(StopIteration):
        walk(stream, list(batches), chosen, sparsity=0.0 if method == "gptq" else 0.5, pattern=pattern, on_block=enough)
    return seconds
