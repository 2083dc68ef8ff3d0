"""On a GPU: tokens per second, MFU and memory of training in bf16, ours against a plain torch loop, both compiled by layer.

Two Llamas, 162M and 1.3B parameters. The plain loop is what one writes without us: autocast, AdamW, clipping. Ours is dense
and under each regime; weight masks save no time on dense hardware, and the ratio says what they cost, with what a regime does
only now and then (choosing masks) spread over the steps between. MFU counts the dense model's FLOPs (SPDF's formula) against
the card's dense bf16 peak. Without a GPU there is nothing to measure.

``python -m tests.bench.bench_gpu_training 162M ste sr_ste`` measures these regimes alone, against our dense step;
``selective`` and ``layer`` are dense steps that compute something again in the backward pass.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.bench.measured import Measured

if TYPE_CHECKING:
    from tasks.train.hook import Run

WORDS = 32_000


@dataclass(frozen=True)
class Size:
    hidden: int
    inner: int
    layers: int
    heads: int
    batch: int
    length: int
    groups: int = 0  # of keys and values, as many as heads unless given
    words: int = WORDS


SIZES = {"162M": Size(768, 3072, 12, 12, 16, 1024), "1.3B": Size(2048, 8192, 16, 16, 8, 2048)}
STEPS = 8
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the vendor's data sheets
# by name: fields, and the most that a step may cost of a dense one
REGIMES: dict[str, tuple[dict[str, Any], float]] = {
    "static": ({"sparsity": 0.75}, 1.03),
    "gradual": ({"sparsity": 0.75}, 1.03),
    "rigl": ({"sparsity": 0.75}, 1.05),
    "ste": ({}, 1.15),
    "sr_ste": ({}, 1.15),
    "mdgf_exponential": ({"location": "all"}, 1.15),
    "sdgf_stepwise": ({"location": "all"}, 1.15),
    "s_ste": ({"mvue": False}, 1.05),
    "fst": ({"mvue": False}, 1.15),
}
RECOMPUTED = {"selective": "all but products and attention twice, of our step", "layer": "each layer twice, of our step"}
PLAIN = 1 / 0.97  # ours, of the plain loop's time


@dataclass(frozen=True)
class Pace:
    """Seconds of a step, and the most bytes that were allocated."""

    seconds: float
    peak: int = 0


def measure() -> list[Measured]:
    import torch

    if not torch.cuda.is_available():
        return []
    return [line for name in SIZES for line in of_size(name)]


def of_size(name: str) -> list[Measured]:
    size, lines = SIZES[name], []

    def tell(what: str, pace: Pace, against: Pace, bar: float | None, compared: str) -> None:
        lines.append(Measured(f"gpu.{name}.{what}", pace.seconds / against.seconds, bar, f"{compared}: {said(size, pace)}"))

    plain = alone(lambda: plain_loop(size))
    tell("plain", plain, plain, None, "a plain torch loop, each layer compiled")
    tell("plain_eager", alone(lambda: plain_loop(size, compiled=False)), plain, None, "a plain torch loop, not compiled")
    dense = alone(lambda: ours(size, "dense", {}))
    tell("dense", dense, plain, PLAIN, "our step of the plain loop's time")
    for what, again in RECOMPUTED.items():
        tell(f"recompute.{what}", alone(lambda what=what: ours(size, "dense", {}, recompute=what)), dense, None, again)
    for regime, (fields, bar) in REGIMES.items():
        tell(regime, alone(lambda regime=regime, fields=fields: ours(size, regime, fields)), dense, bar, "of our dense step")
    taught, answering = alone(lambda: ours(size, "masked", {})), alone(lambda: teacher_forward(size))
    both = Pace(dense.seconds + answering.seconds)
    tell("distillation", taught, both, 1 / 0.9, "of a dense step and a teacher's forward pass")
    tell("deepspeed", alone(lambda: ours(size, "dense", {}, zero=1)), plain, PLAIN, "our step on DeepSpeed, ZeRO 1")
    return lines


def of_regimes(name: str, regimes: list[str]) -> list[Measured]:
    """The dense step before and after, so that a card that slows down is seen."""
    size, lines = SIZES[name], []
    dense = alone(lambda: ours(size, "dense", {}))
    for regime in [*regimes, "dense"]:
        fields, bar = REGIMES.get(regime, ({}, None))
        how = {"recompute": regime} if regime in RECOMPUTED else {}
        name_of = "dense" if how else regime
        pace = alone(lambda name_of=name_of, fields=fields, how=how: ours(size, name_of, fields, **how))
        share = pace.seconds / dense.seconds
        lines.append(Measured(f"gpu.{name}.{regime}", share, bar, f"of our dense step: {said(size, pace)}"))
    return lines


def said(size: Size, pace: Pace) -> str:
    import torch

    rate, card = size.batch * size.length / pace.seconds, torch.cuda.get_device_name()
    peak = next((peak for name, peak in PEAKS.items() if name in card), None)
    mfu = f", MFU {100 * rate * flops(size) / peak:.1f} %" if peak else ""
    return f"{rate:,.0f} token/s{mfu}, {pace.peak / 2**30:.1f} GiB on {card}"


def alone(run: Callable[[], Pace]) -> Pace:
    """One contestant on an empty card."""
    import torch

    torch._dynamo.reset()  # what was compiled for others before is looked through in every call
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, pace = torch.cuda.memory_allocated(), run()
    return Pace(pace.seconds, torch.cuda.max_memory_allocated() - before)


def flops(size: Size) -> float:
    """Of training on a token, dense."""
    import torch

    from tasks.models.accounting import shape_of

    with torch.device("meta"):
        return shape_of(llama(size)).training_flops(1, size.length)


def config_of(size: Size) -> Any:
    from transformers import LlamaConfig

    heads = {"num_attention_heads": size.heads, "num_key_value_heads": size.groups or size.heads}
    widths = {"hidden_size": size.hidden, "intermediate_size": size.inner, "num_hidden_layers": size.layers}
    return LlamaConfig(**heads, **widths, vocab_size=size.words, max_position_embeddings=size.length)


def llama(size: Size) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(config_of(size))


def on_card(size: Size) -> Any:
    import torch

    with torch.device("cuda"):
        return llama(size).train()


def drawn(size: Size) -> Any:
    import torch

    return torch.randint(size.words, (size.batch, size.length), device="cuda")


def plain_loop(size: Size, compiled: bool = True) -> Pace:
    import torch
    from torch.nn import functional, utils

    model, tokens = on_card(size), drawn(size)
    for layer in model.model.layers if compiled else ():
        layer.compile()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.1, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(input_ids=tokens, use_cache=False).logits
        functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Pace(time_of(step, STEPS))


def teacher_forward(size: Size) -> Pace:
    import torch

    teacher, tokens = taught_by(size), drawn(size)

    def step() -> None:
        with torch.no_grad():
            teacher(input_ids=tokens, use_cache=False)

    return Pace(time_of(step, STEPS))


def taught_by(size: Size) -> Any:
    import torch

    from tasks.train.compiled import compile_blocks

    teacher = on_card(size).to(torch.bfloat16).eval().requires_grad_(False)
    compile_blocks(teacher)
    return teacher


def ours(size: Size, name: str, fields: dict[str, Any], zero: int | None = None, **how: Any) -> Pace:
    """A step in the middle of a run."""
    regime, run, step = prepared(size, name, fields, zero, **how)
    run.step = 40_001
    usual = time_of(step, STEPS)
    run.step = 40_199  # in the next step, or after it, every regime chooses masks that chooses any
    more = 2 * (time_of(step, 2, warm=0, rounds=1) - usual)
    interval = getattr(regime, "interval", getattr(regime, "refresh", None))
    return Pace(usual + max(0.0, more) / interval if interval else usual)


def prepared(
    size: Size, name: str, fields: dict[str, Any], zero: int | None = None, **how: Any
) -> tuple[Any, Run, Callable[[], None]]:
    """(regime, run, one step) of the engine, hooks and objective that a stage puts together; of a rank under torchrun."""
    from tasks.context import Execution
    from tasks.data.batch import Batch
    from tasks.machine import make_engine
    from tasks.methods import build
    from tasks.models.build.deferred import deferred
    from tasks.models.find.linears import find_linears
    from tasks.train.hook import Run
    from tasks.train.ready import ready
    from tasks.train.regime import Setting

    kind = {"engine": "torch"} if zero is None else {"engine": "deepspeed", "zero": zero}
    execution = Execution(device="cuda", precision="bfloat16", **{**kind, "compile": True, **how})
    regime = build("regimes", {name: fields})
    model, weights = deferred(config_of(size), 0) if zero == 3 else (on_card(size), None)
    ready(model, execution, execution.recompute)
    linears = find_linears(model)
    engine = make_engine(execution, model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0, 1, weights)
    run = Run(engine, 100_000)
    hooks, goal = regime.hooks(Setting(linears, {}, run.steps, run.steps)), regime.objective()
    loss_of = goal.bind(taught_by(size) if goal.needs_teacher() else None, execution.logits_bytes, execution.compile)
    for hook in hooks:
        hook.on_start(run)
    batch = Batch(drawn(size))

    def step() -> None:
        loss, _ = loss_of(engine, batch)
        engine.backward(loss)
        for hook in hooks:
            hook.after_backward(run)
        engine.step(1e-4)
        run.step += 1
        for hook in hooks:
            hook.after_step(run)

    return regime, run, step


def time_of(call: Callable[[], Any], times: int, warm: int = 3, rounds: int = 3) -> float:
    """Seconds of one call, after some that do not count; the best of some rounds, since a small model's card waits for its
    host, which others use too."""
    import torch

    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(times):
            call()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begun) / times)
    return min(seconds)


if __name__ == "__main__":
    for line in of_regimes(sys.argv[1], sys.argv[2:]):
        print(f"{line.name}: {line.value:.3f} (at most {line.bar}) {line.compared}")
