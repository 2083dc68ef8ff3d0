"""Mix: the shape that loses least in sum is found, costs what it was allowed, and is made of what lost least."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from tasks.calibrate.solvers.mixing import Shape, kv_values, latency, parameters, prices, solve
from tasks.calibrate.whole import Whole
from tasks.methods import build
from tasks.models.facts import facts_in
from tasks.models.files.checkpoint import load_model, skeleton
from tasks.stage import stage_class
from tests.contracts.test_resizers import BATCHES, shrunk
from tests.tasks import models_zoo as zoo


def shapes(depths, channels, groups=(1,)):
    """Each block costs its channels and groups, and 10 are paid besides."""
    return {Shape(d, c, g): 10 + d * (c + g) for d, c, g in itertools.product(depths, channels, groups)}


def test_a_choice_by_hand():
    """Three blocks of 4 channels and a group cost 25; 20 may stay. Two blocks cost 20 and lose 0.3 by the block that goes;
    three of 2 channels cost 19 and lose what the channels are worth."""
    priced, by_block = shapes([1, 2, 3], [2, 4]), [0.9, 0.3, 0.5]
    for worth, expected in ((0.2, (Shape(3, 2, 1), [])), (0.4, (Shape(2, 4, 1), [1]))):
        assert solve(priced, 20, 3, by_block, lambda shape, worth=worth: worth * (shape.channels == 2)) == expected
    assert solve(priced, 25, 3, by_block, lambda shape: 0.0) == (Shape(3, 4, 1), [])
    with pytest.raises(ValueError, match="no shape costs so little: the cheapest is 13, and 12 is left"):
        solve(priced, 12, 3, by_block, lambda shape: 0.0)


def test_what_seems_a_gain_takes_nothing_without_need():
    priced = shapes([1, 2, 3], [2, 4])
    assert solve(priced, 20, 3, [-1.0, -2.0, -3.0], lambda shape: 1.0 * (shape.channels == 2))[0] == Shape(2, 4, 1)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_choices(seed):
    draw = np.random.default_rng(seed)
    priced = shapes(range(1, 5), (2, 4, 6, 8), (1, 2))
    by_block, worth = draw.random(4).tolist(), dict(zip(priced, draw.random(len(priced)).tolist(), strict=True))
    for budget in (16, 24, 35, 49):
        shape, gone = solve(priced, budget, 4, by_block, worth.__getitem__)
        found = sum(by_block[index] for index in gone) + worth[shape]
        best = min(sum(sorted(by_block)[: 4 - each.depth]) + worth[each] for each, price in priced.items() if price <= budget)
        assert priced[shape] <= budget and len(gone) == 4 - shape.depth and found == pytest.approx(best, abs=1e-4)


def test_a_price_is_affine_in_the_depth_and_a_sum_of_the_widths():
    def price(shape: Shape) -> float:
        return 7 + shape.depth * (3 * shape.channels + 5 * shape.groups + 2)

    found = prices(Shape(4, 8, 2), [1, 3, 4], [2, 8], [1, 2], price)
    assert all(value == pytest.approx(price(shape)) for shape, value in found.items()) and len(found) == 12


@pytest.mark.parametrize(("budget", "measure"), [("parameters", parameters), ("kv", kv_values)])
@pytest.mark.parametrize("sparsity", [0.2, 0.5])
def test_what_is_left_is_no_more_than_the_budget_and_what_was_foretold(budget, measure, sparsity, tmp_path):
    source = zoo.save("qwen3", tmp_path / "in", layers=4)
    shrunk(source, tmp_path / "out", "mix", sparsity, {"budget": budget})
    before, after = (measure(load_model(path)) for path in (source, tmp_path / "out"))
    said = json.loads((tmp_path / "out" / "report" / "mix.json").read_text())
    assert after <= (1 - sparsity) * before and said["left"] == pytest.approx(after / before)
    config = skeleton(tmp_path / "out").config
    assert said["shape"] == [config.num_hidden_layers, config.intermediate_size, config.num_key_value_heads]


def test_a_width_alone_loses_in_the_model_what_it_was_said_to_lose(tmp_path):
    """What was silent in the whole model is what is not there in the smaller one."""
    source = zoo.save("qwen3", tmp_path / "in", layers=3)
    shrunk(source, tmp_path / "out", "mix", 0.2, {"axes": ["channels"]})
    said = json.loads((tmp_path / "out" / "report" / "mix.json").read_text())
    whole, smaller = Whole(load_model(source), BATCHES), Whole(load_model(tmp_path / "out"), BATCHES)
    assert smaller.loss() - whole.loss() == pytest.approx(said["foretold_loss"], abs=1e-6)
    assert said["losses"]["depth"] == {} and said["gone"] == []


def test_a_measured_time_grows_with_the_model_and_is_what_a_shape_may_be_chosen_by(tmp_path):
    tokens = torch.zeros(1, 64, dtype=torch.int64)
    times = [latency(zoo.model("llama", layers=layers), torch.float32, tokens) for layers in (1, 12)]
    assert times[1] > times[0] > 0
    source = zoo.save("llama", tmp_path / "in", layers=4)
    shrunk(source, tmp_path / "out", "mix", 0.3, {"budget": "latency", "levels": 2})
    said = json.loads((tmp_path / "out" / "report" / "mix.json").read_text())
    assert said["left"] <= 0.7 and load_model(tmp_path / "out")(tokens).logits.isfinite().all()


def test_more_than_any_shape_gives_up_is_refused_and_a_plan_does_not_guess_the_sizes(tmp_path):
    source = zoo.save("llama", tmp_path / "in", layers=4)
    with pytest.raises(ValueError, match=r"sparsity 0.8 leaves less kv than any shape has; choose at most 0.75"):
        build("pruners", {"mix": {"budget": "kv", "axes": ["depth"]}}).check_model(skeleton(source), 0.8)
    stage = stage_class("prune").model_validate({"method": "mix", "sparsity": 0.5})
    assert stage.resizes and stage.reshaped(facts_in(source)) is None


def test_sizes_that_transformers_has_no_model_of_are_none_to_choose(tmp_path):
    """Of 4 groups of one head 3 cannot stay, as 3 heads do not divide 32 hidden features."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 32}
    source = zoo.save("llama", tmp_path / "in", layers=4, **sizes)
    method = build("pruners", {"mix": {"axes": ["groups"], "levels": 4, "budget": "kv"}})
    whole = Whole(skeleton(source), [])
    assert method._counts(whole, method._full(whole))["groups"] == [1, 2, 4]
    shrunk(source, tmp_path / "out", "mix", 0.2, {"axes": ["groups"], "levels": 4, "budget": "kv"})
    assert skeleton(tmp_path / "out").config.num_key_value_heads == 2
