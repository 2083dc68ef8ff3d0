"""Figures draw the numbers they are given."""

from __future__ import annotations

import io

import pytest

from dashboards.figures import (
    fit_errors,
    groups_figure,
    heat_map,
    loss_over_sparsity,
    quality_against_bytes,
    training_curves,
)


def drawn(figure) -> bytes:
    """The figure as PNG: whatever is wrong with it shows at the latest here."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_training_curves_are_loss_and_sparsity_over_tokens():
    history = [{"loss": 5.0, "tokens": 1e6, "sparsity": 0.0}, {"loss": 3.0, "tokens": 2e6, "sparsity": 0.5}]
    figure = training_curves(history, "pretrain")
    loss, sparsity = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 5], [2, 3]]
    assert sparsity.lines[0].get_xydata().tolist() == [[1, 0], [2, 50]]
    assert loss.get_title() == "pretrain" and drawn(figure).startswith(b"\x89PNG")


def test_a_dense_run_has_one_curve():
    assert len(training_curves([{"loss": 5.0, "tokens": 1e6}], "dense").axes) == 1


NAMES = [  # of llama, gpt2 and fused experts
    ("model.layers.{}.self_attn.q_proj.weight", "self_attn.q_proj"),
    ("transformer.h.{}.mlp.c_fc.weight", "mlp.c_fc"),
    ("model.layers.{}.mlp.experts.down_proj", "mlp.experts.down_proj"),
]


@pytest.mark.parametrize(("name", "kind"), NAMES)
def test_the_heat_map_has_a_column_a_block_in_order_and_a_row_a_kind(name, kind):
    figure = heat_map({name.format(block): 0.1 * block for block in (10, 2, 0)}, "prune: sparsity (%)")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "10"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [kind]
    assert axes.images[0].get_array().tolist() == [[0, pytest.approx(0.2), 1]] and axes.get_title() == "prune: sparsity (%)"
    assert [text.get_text() for text in axes.texts] == ["0", "20", "100"] and drawn(figure)


def test_quality_against_size_takes_the_models_that_have_both():
    models = [
        {"stage": "pretrain", "perplexity": 20.0, "bytes": 4e6},
        {"stage": "prune", "bytes": 4e6},
        {"stage": "quantize", "perplexity": 22.0, "bytes": 1e6},
    ]
    figure = quality_against_bytes(models)
    axes = figure.axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[4, 20], [1, 22]]
    assert [text.get_text() for text in axes.texts] == ["pretrain", "quantize"] and drawn(figure)


def test_no_models_make_an_empty_figure():
    assert drawn(quality_against_bytes([]))


def test_a_fit_has_an_error_at_every_run_for_every_count():
    figure = fit_errors([2.0, 3.0], {"average N": [0.0, 0.01], "initial N": [0.1, -0.1], "final N": [0.05, 0.0]})
    _, *fits = figure.axes[0].lines
    assert [line.get_xydata().tolist() for line in fits] == [[[2, 0], [3, 1]], [[2, 10], [3, -10]], [[2, 5], [3, 0]]]
    assert drawn(figure)


def test_a_plan_is_the_lowest_point_of_a_curve_in_its_band():
    figure = loss_over_sparsity([0.0, 0.5], [3.0, 2.0], ([2.5, 1.5], [3.5, 2.5]), (0.5, 2.0))
    curve, chosen = figure.axes[0].lines
    assert curve.get_xydata().tolist() == [[0, 3], [50, 2]] and chosen.get_xydata().tolist() == [[50, 2]]
    assert drawn(figure)


def test_of_many_models_only_those_nobody_beats_are_named():
    places = [(3, 10), (2, 30), (1, 40), (2, 20), (3, 15), (3, 12), (1, 41), (4, 9), (4, 99), (2, 25)]
    models = [{"stage": f"m{index}", "bytes": 1e6 * size, "perplexity": value} for index, (size, value) in enumerate(places)]
    (axes,) = quality_against_bytes(models).axes
    assert [text.get_text() for text in axes.texts] == ["m2", "m3", "m0", "m7"]
    assert len(axes.lines[0].get_xdata()) == len(models)


def test_groups_that_lie_far_apart_are_told_on_a_log_scale():
    assert groups_figure({"a": [1.0, 1.2], "b": [50.0]}, "perplexity").axes[0].get_xscale() == "log"
    assert groups_figure({"a": [10.0, 11.0], "b": [12.0]}, "perplexity").axes[0].get_xscale() == "linear"
