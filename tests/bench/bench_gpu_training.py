"""On a GPU: tokens per second and MFU of a 162M-parameter Llama in bf16, dense and under each regime; torch's own 2:4.

Weight masks save no time on dense hardware; the ratio says what they cost. MFU counts the dense model's FLOPs (SPDF's
formula) against the card's dense bf16 peak. The last lines run a feed-forward matrix through the 2:4 kernels that torch
has (pruning to a transposable mask, forward and input gradient sparse, weight gradient dense) against cuBLAS.
Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tests.bench.measured import Measured

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 32_000,
    "max_position_embeddings": 1024,
}
BATCH, LENGTH, STEPS = 16, 1024, 8
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the vendor's data sheets
REGIMES: dict[str, dict[str, Any]] = {
    "dense": {},
    "static": {"sparsity": 0.75},
    "rigl": {"sparsity": 0.75},
    "gradual": {"sparsity": 0.75},
    "ste": {},
    "sr_ste": {},
    "mdgf_exponential": {"location": "all"},
    "sdgf_stepwise": {"location": "all"},
    "s_ste": {"mvue": False},
    "fst": {"mvue": False},
}


def measure() -> list[Measured]:
    import torch

    if not torch.cuda.is_available():
        return []
    card = torch.cuda.get_device_name()
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    rates = {name: tokens_per_second(name, fields) for name, fields in REGIMES.items()}
    lines = []
    for name, (rate, flops) in rates.items():
        said = f"{name} / dense tokens per second on {card}: {rate:,.0f} token/s"
        said += f", MFU {100 * rate * flops / peak:.1f} %" if peak else ""
        lines.append(Measured(f"gpu.{name}", rates["dense"][0] / rate, None, said))
    return lines + semi_structured(card)


def tokens_per_second(name: str, fields: dict[str, Any]) -> tuple[float, float]:
    """(training tokens per second in the middle of a run, training FLOPs per token of the dense model)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tasks.data.batch import Batch
    from tasks.methods import build
    from tasks.models.accounting import shape_of
    from tasks.models.find.linears import find_linears
    from tasks.objectives.cross_entropy import CrossEntropy
    from tasks.train.engine import TorchEngine, adamw
    from tasks.train.hook import Run
    from tasks.train.regime import Setting

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    model.to("cuda")
    engine = TorchEngine(model, adamw(model), 1.0, "cuda", "bf16")
    run = Run(engine, 100_000)
    hooks = build("regimes", {name: fields}).hooks(Setting(find_linears(model), {}, run.steps, run.steps))
    for hook in hooks:
        hook.on_start(run)
    run.step = 40_001
    tokens = torch.randint(32_000, (BATCH, LENGTH), device="cuda")

    def step() -> None:
        loss, _ = CrossEntropy().bind()(engine, Batch(tokens))
        engine.backward(loss)
        for hook in hooks:
            hook.after_backward(run)
        engine.step(1e-4)
        run.step += 1
        for hook in hooks:
            hook.after_step(run)

    seconds = time_of(step, STEPS)
    return BATCH * LENGTH / seconds, shape_of(model).training_flops(1, LENGTH)


def time_of(call: Callable[[], Any], times: int) -> float:
    """Seconds of one call, after three that do not count."""
    import torch

    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) / times


def semi_structured(card: str, tokens: int = 16_384, width: int = 4096, inner: int = 14_336) -> list[Measured]:
    """torch's 2:4 kernels against dense products of the same shapes, each cost by itself and as one training step."""
    import torch
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    half = {"device": "cuda", "dtype": torch.bfloat16}
    weight_OI, input_TI = torch.randn(inner, width, **half), torch.randn(tokens, width, **half)
    gradient_TO = torch.randn(tokens, inner, **half)
    dense = {
        "forward": time_of(lambda: input_TI @ weight_OI.T, 20),
        "input gradient": time_of(lambda: gradient_TO @ weight_OI, 20),
        "weight gradient": time_of(lambda: gradient_TO.T @ input_TI, 20),
    }
    lines = []
    for kind in (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS):
        label = kind.__name__.removeprefix("SparseSemiStructuredTensor").lower()
        try:
            sparse_OI = kind.prune_dense_static_sort(weight_OI)
            ours = {
                "prune": time_of(lambda kind=kind: kind.prune_dense_static_sort(weight_OI), 20),
                "forward": time_of(lambda sparse_OI=sparse_OI: torch.mm(sparse_OI, input_TI.T), 20),
                "input gradient": time_of(lambda sparse_OI=sparse_OI: torch.mm(sparse_OI.t(), gradient_TO.T), 20),
            }
        except (RuntimeError, NotImplementedError) as error:
            lines.append(Measured(f"gpu.2:4.{label}", float("nan"), None, f"refused by torch on {card}: {str(error)[:90]}"))
            continue
        whole = (sum(ours.values()) + dense["weight gradient"]) / sum(dense.values())
        parts = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in ours.items())
        against = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in dense.items())
        said = f"2:4 / dense training step of one {inner} x {width} matrix, {tokens} tokens: ms {parts} against {against}"
        lines.append(Measured(f"gpu.2:4.{label}", whole, None, said))
    return lines
