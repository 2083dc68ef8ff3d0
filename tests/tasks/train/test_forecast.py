"""A loss that follows the curve is foretold, and the band holds what comes of one that scatters around it."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.train.forecast import forecast

TOKENS = np.arange(21) * 1000.0


def curve(tokens, floor=2.0, height=3.0, exponent=0.7):
    return floor + height * (1 + np.asarray(tokens) / 1000) ** -exponent


@pytest.mark.parametrize("exponent", [0.2, 0.7, 2.0])
@pytest.mark.parametrize("seen", [6, 12])
def test_a_curve_of_its_kind_is_foretold(exponent, seen):
    told = forecast(TOKENS[:seen], curve(TOKENS[:seen], exponent=exponent), TOKENS[-1])
    assert told.loss == pytest.approx(curve(TOKENS[-1], exponent=exponent), rel=0.01)
    assert told.high - told.low < 0.1  # nothing scatters: what is left is the grid of exponents


def test_the_band_holds_most_of_what_scatters_and_narrows_as_the_end_comes_near():
    held, widths = 0, {8: [], 16: []}
    for seed in range(50):
        losses = curve(TOKENS) + 0.01 * np.random.default_rng(seed).standard_normal(21)
        for seen, found in widths.items():
            told = forecast(TOKENS[:seen], losses[:seen], TOKENS[-1])
            found.append(told.high - told.low)
            held += told.low <= curve(TOKENS[-1]) <= told.high
    assert held >= 90 and np.mean(widths[16]) < np.mean(widths[8])


def test_a_loss_that_rises_is_level_and_too_few_say_nothing():
    rising = forecast(TOKENS[:6], [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], 1e6)
    assert rising.loss == pytest.approx(1.25) and rising.low < 1.25 < rising.high
    assert forecast(TOKENS[:4], curve(TOKENS[:4]), 1e6) is None


def test_no_loss_below_nothing_is_foretold():
    assert forecast(TOKENS[:6], [6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 1e9).loss >= 0
