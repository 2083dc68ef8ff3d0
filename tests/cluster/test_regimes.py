"""Every regime trains on two ranks, at each ZeRO stage, what one plain process trains: the same losses and masks.

Which weights live is decided by comparing numbers, and a near-tie falls as the last bit says: a bound on how many masks may
differ would hold on one processor and not on the next. So the sums themselves are the same here. Both sides add the gradients
of the same two halves of a batch, and every sum of a forward and backward pass is taken in float64 and rounded to the float32
that is stored, which leaves no trace of the order or the kernel. Norms (summed over shards) are test_engine's business.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tasks.data.tokens import Sampler
from tasks.models.build.building import operate
from tasks.models.files.checkpoint import load_model
from tasks.models.find.linears import find_linears
from tasks.train import compiled
from tasks.train.compiled import compile_blocks
from tasks.train.engine import Engine, TorchEngine
from tasks.train.hook import Hook
from tasks.train.loop import Telemetry, fit
from tasks.train.masking import Masking
from tasks.train.regime import Regime, Setting
from tasks.train.schedule import LearningRate
from tests.cluster.deepspeed.test_engine import ranks
from tests.contracts.test_regimes import CASES, regime_of
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

STEPS, BATCH, RANKS = 12, 4, 2
# each rank draws its own random estimates, so they cannot be one process's
EXACT = {name: {"mvue": False} for name in ("s_ste", "fst")}
# what one process scores at once the ranks score in chunks of five tokens
CHUNKS = dict.fromkeys(("dense", "masked", "lora", "sr_ste"), 5 * 4 * zoo.VOCABULARY)
# five units in the last place: one gradient in some 10^8 lies so near a border that float64 sums round to both its sides
LAST_PLACES = 6e-7


def train(
    name: str, build_engine, directory: Path, micro_batch: int | None, logits_bytes: int | None = None, compile: bool = False
) -> tuple[list[float], list[Hook]]:
    """(loss of every step, hooks) of a regime on the engine that ``build_engine`` makes of a model and optimizer."""
    regime, model = regime_of(name, **EXACT.get(name, {})), zoo.model("llama", layers=1)
    if surgery := regime.surgery():
        operate(model, surgery)
    model, steps = zoo.in_double(model), min(24, regime.total_steps(STEPS))
    compile_blocks(model) if compile else None
    setting = Setting(find_linears(model), {}, STEPS, steps, data=directory / "sequence")
    losses, hooks, _ = fitted(regime, model, setting, build_engine, directory, micro_batch, logits_bytes)
    return losses, hooks


def fitted(
    regime: Regime,
    model: PreTrainedModel,
    setting: Setting,
    build_engine,
    directory: Path,
    micro_batch: int | None,
    logits_bytes: int | None = None,
) -> tuple[list[float], list[Hook], Engine]:
    """(loss of every step, hooks, engine) of a regime that trains a model to its end."""
    regime.setup(model, setting)
    hooks, goal, losses = regime.hooks(setting), regime.objective(), []
    objective = goal.bind(load_model(directory / "teacher").eval() if goal.needs_teacher() else None, logits_bytes)
    sampler = Sampler(data_zoo.Tokens(directory / "data", "train"), 16, BATCH, seed=0)
    for hook in hooks:
        sampler, objective = hook.sampler(sampler), hook.objective(objective)
    engine = build_engine(model, regime.optimizer(model, (0.9, 0.95), 0.1))
    telemetry = Telemetry(log=lambda metrics, step: losses.append(metrics["loss"]), every=1)
    rate = LearningRate(3e-3, setting.steps)
    fit(engine, sampler, objective, hooks, setting.steps, rate, telemetry=telemetry, micro_batch=micro_batch)
    regime.finish(engine, setting)
    return losses, hooks, engine


def check(name: str, directory: Path) -> None:
    """What each of two ranks asserts."""
    from cluster.deepspeed.engine import DeepSpeedEngine

    alone, reference = train(name, TorchEngine, directory, BATCH // RANKS)
    for stage, compile in ((1, False), (2, False), (3, False), (3, True)):
        engine = partial(DeepSpeedEngine, zero_stage=stage)
        shared, hooks = train(name, engine, directory, None, CHUNKS.get(name), compile)
        assert shared == pytest.approx(alone, rel=LAST_PLACES), (name, stage, compile)
        check_masks(name, hooks, reference)


def check_masks(name: str, hooks: list[Hook], reference: list[Hook]) -> None:
    for ours, theirs in zip(hooks, reference, strict=True):
        for linear, mask in theirs.masks.items() if isinstance(theirs, Masking) else ():
            assert torch.equal(ours.masks[linear].keep, mask.keep), (name, linear)


@pytest.mark.slow
def test_two_ranks_at_each_zero_stage_train_what_one_process_trains_whatever_the_regime(tmp_path):
    data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 40))
    data_zoo.write_sequence(tmp_path / "sequence", length=16)
    zoo.save("llama", tmp_path / "teacher", layers=1)
    outputs = ranks(RANKS, str(tmp_path), *CASES, environment={}, module="tests.cluster.test_regimes")
    assert all(output.splitlines()[-1] == f"checked {len(CASES)}" for output in outputs)


if __name__ == "__main__":
    compiled.BACKEND = "aot_eager"
    for regime in sys.argv[2:]:
        check(regime, Path(sys.argv[1]))
    print("checked", len(sys.argv[2:]))
    from cluster.deepspeed.rank import leave

    leave(0)
