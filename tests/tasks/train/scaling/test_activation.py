"""The law of activation: the published measurements give the published errors, and its forms are told apart."""

import numpy as np
import pytest

from tasks.train.scaling.activation import ActivationLaw, fit

# Activation ratios of two models of arXiv 2411.02335, from its authors' data (SparsingLawData, 0.1b_relu and 0.4b_silu), to
# four digits; the first model's at 0.8, 1.6, 2.4, 3.2 billion tokens and then every 1.6.
RELU_TOKENS = [0.801e9, 1.602e9, 2.402e9, *(1.6013e9 * step for step in range(2, 27))]
RELU = """
.1047 .0954 .0910 .0881 .0855 .0821 .0814 .0786 .0781 .0770 .0758 .0755 .0737 .0755
.0746 .0733 .0732 .0735 .0723 .0730 .0720 .0718 .0713 .0714 .0707 .0713 .0712 .0709
"""
SILU_TOKENS = [3.6317e9 * step for step in range(1, 41)]
SILU = """
.3255 .3408 .3539 .3605 .3646 .3694 .3714 .3726 .3731 .3749 .3744 .3760 .3772 .3775
.3776 .3765 .3783 .3781 .3799 .3797 .3806 .3813 .3815 .3810 .3807 .3795 .3808 .3804
.3815 .3807 .3819 .3804 .3824 .3816 .3827 .3813 .3828 .3801 .3823 .3826
"""


def numbers(text):
    return [float(word) for word in text.split()]


@pytest.mark.parametrize(
    ("tokens", "ratios", "trend", "limit", "error"),
    [(RELU_TOKENS, RELU, "falls", 0.0614, 0.000407), (SILU_TOKENS, SILU, "rises", 0.385, 0.0024)],
    ids=["relu", "silu"],
)
def test_the_published_measurements_are_fitted_as_well_as_their_authors_fit_them(tokens, ratios, trend, limit, error):
    law = fit(tokens, numbers(ratios))
    assert law.trend == trend
    assert law.mean_absolute_error <= error * 1.02
    assert law.limit == pytest.approx(limit, abs=0.01)


@pytest.mark.parametrize(
    "law", [ActivationLaw("falls", 0.069, (0.079, 0.683, -3.46), 0.0), ActivationLaw("rises", 0.385, (0.42, 1.03), 0.0)]
)
def test_a_law_is_found_again_in_what_follows_it(law):
    tokens = np.linspace(4e9, 150e9, 30)
    found = fit(tokens.tolist(), law.ratio(tokens).tolist())
    assert found.trend == law.trend and found.limit == pytest.approx(law.limit, abs=1e-4)
    assert found.ratio(300e9) == pytest.approx(law.ratio(300e9), abs=1e-4)


def test_too_few_measurements_are_refused():
    with pytest.raises(ValueError, match="6 or more different amounts of tokens are needed"):
        fit([1e9] * 6, [0.1] * 6)
