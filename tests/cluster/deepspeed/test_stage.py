"""A stage on DeepSpeed in a process that goes on with other stages, as ``winnow run --here`` does."""

from __future__ import annotations

from torch.nn import functional

from cluster.deepspeed.engine import DeepSpeedEngine
from tests.tasks import workshop
from tests.tasks.workshop import LLAMA, TRAINING, Workshop


def test_a_stage_under_zero_3_leaves_torch_as_it_was_for_those_that_follow(tmp_path, monkeypatch):
    place, linear, meanwhile, step = Workshop(tmp_path), functional.linear, [], DeepSpeedEngine.step
    monkeypatch.setattr(DeepSpeedEngine, "step", lambda engine, rate: meanwhile.append(functional.linear) or step(engine, rate))
    data = place.data()
    monkeypatch.setattr(workshop, "EXECUTION", workshop.EXECUTION | {"engine": "deepspeed", "zero": 3})
    place.make("pretrain", {"model": LLAMA, **TRAINING}, data=data)
    assert meanwhile and linear not in meanwhile and functional.linear is linear
