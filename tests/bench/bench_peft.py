"""A step of sparse LoRA against a step of PEFT's LoRA: the same model, batch, rank, optimizer and process.

``make bench-peers`` builds PEFT's environment, which has our torch and transformers and PEFT beside them, and runs this in it;
without it nothing is measured. PEFT's adapters know no mask, so merging them makes the model dense; ours stay inside 2:4. The
price is the gradient of each whole weight, which the mask is applied to and PEFT never makes: a third product beside the
forward and backward pass. What PEFT pays instead is two narrow products a matrix and their activations, which weighs more the
narrower the model is, so there are two sizes.

    build/peft/bin/python -m tests.bench.bench_peft      both sides, once
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import quickstart
from tests.bench.bench_peers import SIZES
from tests.bench.bench_walker_memory import ROOT
from tests.bench.measured import Measured, clock, median, spread, take_turns

PEFT = ROOT / "build" / "peft" / "bin" / "python"
RANK, ALPHA, ROUNDS = 8, 16, 9


def measure() -> list[Measured]:
    if not PEFT.exists():
        print("peft: PEFT is not installed, run make bench-peers", file=sys.stderr)
        return []
    command = [str(PEFT), "-m", "tests.bench.bench_peft"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"PEFT's process ended with {done.returncode}: {done.stderr[-1000:]}")
    return [Measured(**line) for line in json.loads(done.stdout.splitlines()[-1])]


def wide() -> Any:
    """Two blocks of the model that the walker's peers prune."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES | {"num_hidden_layers": 2, "vocab_size": 4000})).train()


def compete() -> list[dict[str, Any]]:
    return contest("", quickstart.model) + contest(".wide", wide)


def contest(size: str, model: Callable[[], Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        sampler = quickstart.sampler(Path(directory), 1)
        masked, (theirs, their_count) = Ours(model(), sampler, True), peer(model(), sampler)
        dense = Ours(model(), sampler, False)
        assert masked.trainable == their_count, "the same adapters"
        rounds = take_turns({"masked": masked.step, "dense": dense.step, "peft": theirs}, ROUNDS)
    lines = []
    for name, bar, what in (("masked", 1.0, "sparse LoRA in 2:4"), ("dense", None, "LoRA without masks")):

        def ratio(seconds: dict[str, float], name: str = name) -> float:
            return seconds[name] / seconds["peft"]

        step = 1000 * median(rounds, lambda seconds: seconds["peft"])
        compared = f"{what} / PEFT's LoRA step of {step:.0f} ms, rank {RANK} in every matrix; {spread(rounds, ratio)}"
        label = "peft.lora" + size + ("" if name == "masked" else ".dense")
        lines.append({"name": label, "value": median(rounds, ratio), "bar": bar, "compared": compared})
    return lines


class Ours:
    """A frozen model and a branch in every matrix."""

    def __init__(self, model: Any, sampler: Any, masked: bool) -> None:
        from tasks.formats.mask import Mask
        from tasks.formats.pattern import parse_pattern
        from tasks.methods import build
        from tasks.models.find.linears import find_linears
        from tasks.train.engine import TorchEngine
        from tasks.train.hook import Run
        from tasks.train.regime import Setting

        linears, keep = find_linears(model), parse_pattern("2:4").keep
        stored = {name: linear.matrix(model.get_parameter(name)).detach() for name, linear in linears.items()}
        masks = {name: Mask.of(keep(weight.abs(), 0.5), "2:4", 0.5) for name, weight in stored.items()} if masked else {}
        regime, setting = build("regimes", {"lora": {"rank": RANK, "alpha": ALPHA}}), Setting(linears, masks, 100, 100)
        regime.setup(model, setting)
        self.trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
        engine = TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0)
        self.run, self.hooks, self.sampler = Run(engine, 100), regime.hooks(setting), sampler
        for hook in self.hooks:
            hook.on_start(self.run)

    def step(self) -> float:
        from tasks.objectives.cross_entropy import CrossEntropy
        from tasks.train.loop import _accumulate

        begun = clock()
        _accumulate(self.run, self.sampler, CrossEntropy().bind(), None)
        self.run.engine.step(1e-3)
        return clock() - begun


def peer(plain: Any, sampler: Any) -> tuple[Any, int]:
    """PEFT's LoRA in the same matrices; (a step, the number of trainable parameters)."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tasks.models.find.linears import find_linears

    names = [name.removesuffix(".weight") for name in find_linears(plain)]
    model = get_peft_model(plain, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=names))
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, (0.9, 0.95), weight_decay=0.1, foreach=True)

    def step() -> None:
        tokens = sampler.at(0).tokens
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(value.numel() for value in trained)


if __name__ == "__main__":
    print(json.dumps(compete()))
