"""Worked examples of neurons and tails, and the search that finds the last place within a goal."""

from __future__ import annotations

import random

import pytest
import torch

from tasks.models.firing import GRID, NEVER, Firing, Tail, last_within
from tests.tasks import models_zoo as zoo

COLUMNS_DF = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # of lengths 3 and 4


def test_the_error_of_a_tail_by_hand():
    # The first token adds (3, 0) and (0, 4), of lengths 3 and 4 out of 5; the second (0, 4) alone; the third nothing.
    tail = Tail(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), COLUMNS_DF)
    assert tail.error(0) == 0.0 and tail.error(2.9) == 0.0
    assert tail.error(3) == pytest.approx((3 / 5 + 0 + 0) / 3)
    assert tail.error(4) == pytest.approx((1 + 1 + 0) / 3)


def test_the_threshold_is_the_largest_of_the_grid_within_the_error():
    tail = Tail(torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), COLUMNS_DF)
    step = (tail.scale.high - tail.scale.low) / (GRID - 1)
    assert tail.threshold(0.0) == pytest.approx(3, abs=step) and tail.threshold(0.0) < 3
    assert tail.threshold(0.199) < 3 < tail.threshold(0.201) < tail.scale.high == 4  # at 4 two thirds are lost
    assert tail.threshold(0.201) == pytest.approx(4, abs=step)
    assert tail.threshold(0.7) == tail.scale.high  # the 0.99-quantile, beyond which there is no threshold


def test_where_even_the_smallest_threshold_loses_too_much_none_is_left_out():
    tail = Tail(torch.ones(4, 2), torch.ones(1, 2))  # all add the same
    assert tail.threshold(0.5) == 0.0


def test_errors_rise_with_the_threshold_and_end_at_all():
    """No theorem: neurons may cancel each other. In many dimensions they hardly do."""
    generator = torch.Generator().manual_seed(0)
    tail = Tail(torch.randn(50, 32, generator=generator), torch.randn(256, 32, generator=generator))
    errors = [tail.error(threshold) for threshold in torch.linspace(0, float(tail.added_NF.max()), 40).tolist()]
    assert errors == sorted(errors) and errors[0] == 0 and errors[-1] == pytest.approx(1)


@pytest.mark.parametrize("shape", ["steps", "smooth", "late"])
def test_the_search_finds_what_trying_all_finds_in_fewer_steps_than_halving_twice(shape):
    draw = random.Random(1)
    for _ in range(20):
        bend = draw.uniform(0.2, 5)
        values = {
            "steps": [place // 5000 / 14 for place in range(GRID)],
            "smooth": [(place / GRID) ** bend for place in range(GRID)],
            "late": [0.0 if place < 60_000 else (place - 60_000) / GRID for place in range(GRID)],
        }[shape]
        goal, seen = draw.uniform(0, 0.08), []
        known = {-1: -1e-9, GRID: NEVER}
        found = last_within(lambda place, values=values, seen=seen: seen.append(place) or values[place], goal, known)
        assert found == max(place for place in range(GRID) if values[place] <= goal) and len(seen) <= 48
        before = len(seen)
        assert last_within(lambda place: pytest.fail("it is known"), goal, known) == found and len(seen) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma"])
def test_what_neurons_add_sums_up_to_what_the_last_matrix_gives(architecture, tmp_path):
    model = zoo.model(architecture)
    zoo.save(architecture, tmp_path)
    firing = Firing(model, tmp_path, "cpu")
    given = []
    for down in firing.downs:
        module = model.get_submodule(down.name.rpartition(".")[0])
        module.register_forward_hook(
            lambda module, _, gave: given.append(gave - (0 if getattr(module, "bias", None) is None else module.bias))
        )
    with torch.inference_mode(), firing.recorded():
        model(zoo.batches(1)[0])
    for block, gave in enumerate(given):
        summed = firing._activations[block] @ firing.columns(block).T
        assert torch.allclose(summed, gave.flatten(0, -2), atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_silenced_neurons_are_those_that_add_less_and_the_model_is_itself_again(architecture, tmp_path):
    model = zoo.model(architecture)
    zoo.save(architecture, tmp_path)
    firing, tokens = Firing(model, tmp_path, "cpu"), zoo.batches(1)[0]
    with torch.inference_mode():
        before = model(tokens).logits
        with firing.recorded():
            model(tokens)
        with firing.silenced([0.0, 0.0]) as counts:
            assert torch.equal(model(tokens).logits, before)
        added = [acts.float().abs() * lengths for acts, lengths in zip(firing._activations, firing.lengths, strict=True)]
        assert counts == [[values.numel(), int((values > 0).sum())] for values in added]
        middle = float(added[0][added[0] > 0].median())
        with firing.silenced([middle, 0.0]) as counts:
            assert not torch.equal(model(tokens).logits, before)
        assert counts[0][1] == int((added[0] >= middle).sum())
        assert torch.equal(model(tokens).logits, before)
