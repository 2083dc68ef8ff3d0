"""MDGF-Exponential: what lies outside the mask counts for less and less, by a constant ratio."""

import pytest

from tests.tasks.regimes.gym import enter


def test_the_share_reaches_one_percent_where_the_hard_phase_begins_and_is_cut_there():
    regime = enter("mdgf_exponential", hard=0.2, pattern="1:8").regime
    shares = [regime.phase(step, 100).share for step in (0, 40, 79, 80)]
    assert shares == pytest.approx([1, 0.1, 0.01 ** (79 / 80), 0])


def test_the_authors_rate_reaches_one_percent_after_46052_steps():
    regime = enter("mdgf_exponential", rate=1e-4).regime
    assert regime.share(46_051, 1) > 0.01 > regime.share(46_053, 1)
