"""Break-even and speed-ups of the model's own zeros, by hand; where there is no gain it is said."""

from __future__ import annotations

import pytest

from tasks.models.running.bench import OWN, Measured
from tasks.models.running.report import break_even, numbers, told


def row(speedup: float, form: str = "csr", zeros: str = "unstructured", sparsity: float = 0.5, **fields) -> Measured:
    sizes = {"bytes": 5, "dense_bytes": 10}
    return Measured("a", 1, form, zeros, sparsity, 1.0, 1.0, speedup, **sizes, **fields)


def test_the_break_even_by_hand():
    assert break_even({0.5: 0.5, 0.7: 2.0}) == pytest.approx(0.6)  # half of it and twice it are as far from it
    assert break_even({0.5: 0.25, 0.8: 0.5, 0.9: 4.0}) == pytest.approx(0.8 + 0.1 / 3)
    assert break_even({0.5: 1.2, 0.7: 0.9, 0.9: 1.1}) > 0.7  # from there on, not once before
    assert break_even({0.5: 1.4, 0.7: 2.4}) == 0.5
    assert break_even({0.5: 0.2, 0.95: 0.99}) == 1.0


def test_a_form_breaks_even_where_it_does_on_every_matrix():
    rows = [row(0.5), row(2.0, sparsity=0.7), row(0.8, "bsr4")]
    other = [Measured("b", 1, "csr", "unstructured", 0.5, 1.0, 1.0, 3.0), Measured("b", 1, "bsr4", "block:4", 0.5, why="no")]
    assert numbers([*rows, *other], {"a": 1, "b": 1}) == {
        "break_even_sparsity.csr_n1": pytest.approx(0.6),
        "break_even_sparsity.bsr4_n1": 1.0,
        "kernel_error": 0.0,
    }


def test_own_zeros_are_told_by_the_form_of_their_pattern_weighted_by_how_many_matrices_there_are():
    own = [row(1.1, "masked", OWN), row(0.2, "csr", OWN), Measured("b", 1, "bsr4", OWN, 0.5, 1.0, 1.0, 4.0)]
    found = numbers(own, {"a": 3, "b": 1})
    assert found["own_speedup.n1"] == pytest.approx((3 * 0.2 + 4) / 4)
    lost = [row(1.1, "masked", OWN), row(0, "csr", OWN, why="no kernel")]
    assert numbers(lost, {"a": 3})["own_speedup.n1"] == pytest.approx(1.1)


def test_that_there_is_no_gain_is_said():
    text = told([row(0.2, "csr", OWN), row(0.4), row(0.9, sparsity=0.95)], {"a": 1})
    assert "0.20 x the speed of the dense matrices: no gain" in text
    assert "The zeros of this model buy no speed here" in text and "never: 0.90 x at 95%" in text
    assert "buy no speed" not in told([row(1.5, "sliced", OWN)], {"a": 1})
    assert "not measured: sides" in told([row(1, why="sides")], {})
