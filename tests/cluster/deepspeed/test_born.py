"""Under ZeRO-3 a model is born in pieces, the same bits on any number of ranks; what two ranks began any number goes on with.

Two ranks make snapshots at every ZeRO stage; four ranks, and one, go on from them at others.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from tasks.methods import build
from tasks.models.build.building import builder
from tasks.models.build.deferred import deferred
from tasks.models.files.checkpoint import load_model
from tasks.models.find.linears import find_linears
from tasks.models.stream.slices import sliced
from tasks.train.engine import adamw
from tasks.train.regime import Setting
from tasks.train.snapshot import latest, restore, save
from tests.cluster.deepspeed.test_engine import CHANGE, STEPS, assert_same, backward, keeps, plain, ranks, sharded, state, train
from tests.tasks import models_zoo as zoo

SEED = 7
OTHER = {0: 3, 1: 2, 2: 1, 3: 0}  # the ZeRO stage that goes on from each


def digest(read, names) -> str:
    """Of float32 weights, whatever holds them."""
    total = sha256()
    for name in names:
        total.update(read(name).detach().cpu().numpy().tobytes())
    return total.hexdigest()


def whole(directory: Path | None = None):
    """(a model with its weights, no weights beside it)"""
    if directory:
        return load_model(directory, torch.float32), None
    torch.manual_seed(SEED)
    return builder(config := zoo.config("llama", vocab_size=256)).from_config(config, dtype=torch.float32), None


def hollow(directory: Path | None = None):
    return sliced(directory, directory / "scratch") if directory else deferred(zoo.config("llama", vocab_size=256), SEED)


def engine_of(model, weights, precision: str, regime: str = "dense"):
    from cluster.deepspeed.engine import DeepSpeedEngine

    made = build("regimes", regime)
    made.setup(model, Setting(find_linears(model), {}, 4, 4))
    how = {"precision": precision, "zero_stage": 3, "accumulation": 2, "weights": weights}
    return DeepSpeedEngine(model, adamw(model), 1.0, **how)


def check_born(directory: Path | None, precision: str, regime: str) -> None:
    """What is born in pieces is what was built whole, to the last bit, and trains on as that does."""
    expected = whole(directory)[0]
    names = [name for name, _ in expected.named_parameters()]
    cut, one = (engine_of(*make(directory), precision, regime) for make in (hollow, whole))
    assert all(torch.equal(cut.read(name), expected.get_parameter(name)) for name in names)
    if directory is None:
        print(digest(cut.read, names))
    buffers = dict(one.module.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in cut.module.named_buffers())
    assert_same(state(cut), state(one))
    for step in range(2):
        assert torch.equal(*(backward(engine, step) for engine in (cut, one)))
        assert cut.step(1e-2) == one.step(1e-2)
    assert_same(state(cut), state(one))


def check_first(directory: Path) -> None:
    for stage in OTHER:
        engine = sharded(stage)
        train(engine, range(CHANGE))
        save(engine, directory / f"stage-{stage}", CHANGE, {"cursor": stage}, {})


def check_goes_on(directory: Path, curve: torch.Tensor, *stages: int) -> None:
    for stage, other in ((stage, OTHER[stage]) for stage in stages):
        engine = sharded(other)
        step, values, _ = restore(latest(directory / f"stage-{stage}"), engine)
        assert (step, values) == (CHANGE, {"cursor": stage})
        for name, keep in keeps(0).items():  # masks are exact before anything is held again
            assert not engine.read(name)[~keep].any()
        torch.testing.assert_close(train(engine, range(step, STEPS)), curve[step:], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_two_ranks_begin_and_four_or_one_go_on_at_another_stage(tmp_path):
    stored = zoo.save("llama", tmp_path / "stored", vocab_size=256)
    expected = whole()[0]
    one = digest(expected.get_parameter, [name for name, _ in expected.named_parameters()])
    alone = plain()
    torch.save(curve := train(alone, range(STEPS)), tmp_path / "curve")
    for count, part in ((2, "first"), (4, "then")):
        told = ranks(count, part, str(tmp_path), str(stored), environment={}, module=__name__)
        assert [output.split() for output in told] == [[one]] * count
    check_goes_on(tmp_path, curve, 2)
    for stage in OTHER:
        heir = plain()
        step, *_ = restore(latest(tmp_path / f"stage-{stage}"), heir)
        torch.testing.assert_close(train(heir, range(step, STEPS)), curve[step:], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("precision", "regime"), [("bf16", "lora"), ("fp32", "dense")])
def test_one_rank_is_born_in_pieces_too(precision, regime, tmp_path):
    check_born(zoo.save("llama", tmp_path / "stored", vocab_size=256), precision, regime)


def test_a_parameter_of_one_number_is_born_with_it(tmp_path):
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1}  # which has one attention sink
    check_born(zoo.save("gpt_oss", tmp_path / "stored", vocab_size=256, **one_head), "fp32", "dense")


if __name__ == "__main__":
    part, place, kept = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    check_born(None, "fp32", "dense")
    if part == "first":
        check_born(kept, "bf16", "lora")
        check_first(place)
    else:
        check_goes_on(place, torch.load(place / "curve"), 0, 3)
    from cluster.deepspeed.rank import leave

    leave(0)
