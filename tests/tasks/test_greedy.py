"""A greedy soup takes the best of its models and those with which the mean is no worse, by text that nobody trained on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tasks.context import Context, Execution
from tasks.methods import build
from tasks.stage import Facts, stage_class
from tests.tasks import data_zoo
from tests.tasks.test_merge import saved


def chosen(losses: dict[tuple[int, ...], float], count: int = 3) -> list[int]:
    return build("mergers", "greedy").choose(count, lambda some: losses[tuple(some)])


def test_the_best_comes_first_and_what_makes_it_worse_stays_out():
    """Best is 1; with 2 the mean is better, with 0 too it would be worse."""
    assert chosen({(0,): 3.0, (1,): 1.0, (2,): 2.0, (1, 2): 0.9, (0, 1, 2): 0.95}) == [1, 2]
    assert chosen({(0,): 3.0, (1,): 1.0, (2,): 2.0, (1, 2): 1.1, (0, 1): 1.0}) == [0, 1]  # as good is good enough
    assert chosen({(0,): 3.0, (1,): 1.0, (2,): 2.0, (1, 2): 1.1, (0, 1): 1.01}) == [1]


def merge(tmp_path, *directories, name="merged", **fields):
    stage = stage_class("merge").model_validate({"method": {"greedy": {"sequences": 8, "length": 16, "batch": 4, **fields}}})
    output, notes = tmp_path / name, []
    output.mkdir()
    inputs = {f"models_{number}": directory for number, directory in enumerate(directories)} | {"data": tmp_path / "data"}
    metrics = stage.run(Context(inputs, output, tmp_path / "scratch", Execution(), report=notes.append))
    return metrics, load_file(output / "model.safetensors"), notes


@pytest.fixture
def data(tmp_path):
    data_zoo.write_tokens(tmp_path / "data", "calibration", data_zoo.periodic(512))


def test_no_soup_is_worse_than_its_best_member_and_all_is_told(tmp_path, data):
    models = [saved(tmp_path / str(factor), factor, dead=2) for factor in (1.0, 0.6, 0.2)]
    metrics, weights, notes = merge(tmp_path, *models)
    told = json.loads((tmp_path / "merged" / "report" / "soup.json").read_text())
    alone = [each["loss"] for each in told["tried"] if len(each["models"]) == 1]
    assert len(alone) == 3 and metrics["soup_loss"] <= min(alone) == metrics["best_member_loss"]
    assert metrics["mean_member_loss"] == pytest.approx(sum(alone) / 3) and metrics["merged_models"] == len(told["chosen"])
    assert any(getattr(note, "text", "").startswith("greedy took ") for note in notes)
    kept = [load_file(models[number] / "model.safetensors") for number in told["chosen"]]
    for key, value in weights.items():
        mean = sum(each[key].double() for each in kept) / len(kept)
        assert torch.equal(value, mean.to(value.dtype))


def test_a_soup_of_one_model_twice_is_the_model(tmp_path, data):
    same = saved(tmp_path / "one", 0.5, dead=2)
    metrics, weights, _ = merge(tmp_path, same, same, same)
    assert metrics["soup_loss"] == metrics["best_member_loss"] and metrics["merged_models"] == 3
    assert all(value.equal(load_file(same / "model.safetensors")[key]) for key, value in weights.items())


def test_models_under_other_masks_are_refused_before_any_is_measured(tmp_path):
    with pytest.raises(ValueError, match="models under different masks have no sparse mean"):
        merge(tmp_path, saved(tmp_path / "one", 1.0, dead=1), saved(tmp_path / "two", 1.0, dead=2))


def test_it_takes_data_where_the_mean_of_all_takes_none():
    greedy, uniform = (stage_class("merge").model_validate({"method": name}) for name in ("greedy", "uniform"))
    assert greedy.roles() == {"data": "tokens", "models": "model"} and uniform.roles() == {"models": "model"}
    with pytest.raises(ValueError, match="method.greedy.length 256 is more than the model's 64 positions"):
        greedy.check(Facts(None, 64, {}))
