"""A law is found again from the losses it made, and the count of weights that made them explains them best."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from tasks.train.scaling.law import (
    COUNTS,
    ScalingLaw,
    TrainingRun,
    assess,
    check_runs,
    chosen,
    fit,
    log_errors,
    resample,
    verdict,
)
from tasks.train.schedule import ComputeWindow

CHINCHILLA = ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28)


def grid(noise: float = 0.0, made_by: str = "average", sparsities: tuple[float, ...] = (0.0, 0.5, 0.8)) -> list[TrainingRun]:
    """Runs of five sizes, three budgets and some sparsities, whose losses follow Chinchilla's law up to noise on the log."""
    generator, runs = np.random.default_rng(0), []
    for size in (2e7, 5e7, 1e8, 2e8, 4e8):
        for dense_tokens in (5 * size, 20 * size, 80 * size):
            for sparsity in sparsities:
                tokens = ComputeWindow(sparsity).steps(round(dense_tokens))[2]
                run = TrainingRun(size, size * dense_tokens / tokens, size * (1 - sparsity), tokens, 0.0)
                loss = CHINCHILLA.loss(getattr(run, made_by), tokens) * np.exp(noise * generator.standard_normal())
                runs.append(replace(run, loss=float(loss)))
    return runs


def test_the_loss_is_the_sum_of_three_terms():
    assert ScalingLaw(1.0, 8.0, 0.5, 27.0, 1 / 3).loss(16.0, 27.0) == pytest.approx(1 + 8 / 4 + 27 / 3)


def test_a_law_is_found_again_from_the_losses_it_made():
    law, objective = fit(grid())
    assert astuple(law) == pytest.approx(astuple(CHINCHILLA), rel=1e-4)
    assert objective < 1e-12


def test_noise_of_half_a_percent_leaves_the_exponents_within_a_tenth():
    law, _ = fit(grid(noise=5e-3))
    assert [law.E, law.alpha, law.beta] == pytest.approx([CHINCHILLA.E, CHINCHILLA.alpha, CHINCHILLA.beta], rel=0.1)


def test_one_run_gone_wrong_hardly_moves_the_law():
    """Huber's loss is what the literature takes for this reason."""
    runs = grid(noise=1e-3)
    runs[7] = replace(runs[7], loss=2 * runs[7].loss)
    law, _ = fit(runs)
    assert astuple(law)[::2] == pytest.approx(astuple(CHINCHILLA)[::2], rel=0.1)


@pytest.mark.parametrize("made_by", COUNTS)
def test_the_count_that_made_the_losses_explains_them_best(made_by):
    runs = grid(noise=2e-3, made_by=made_by)
    found = {count: assess(runs, count) for count in COUNTS}
    others = [found[count] for count in COUNTS if count != made_by]
    assert all(found[made_by].objective < other.objective / 2 for other in others)
    assert all(found[made_by].left_out_error < other.left_out_error / 2 for other in others)
    assert found[made_by].r2 > max(other.r2 for other in others)
    assert found[made_by].mean_absolute_error == pytest.approx(np.abs(log_errors(found[made_by].law, runs, made_by)).mean())
    shares = chosen(resample(runs, found, 20))
    assert sum(shares.values()) == 1 and shares[made_by] > 0.9
    told = verdict(found, shares)
    assert told.startswith(f"{made_by} N explains the losses best: left-out error 0.") and told.endswith("% of resamples")


def test_dense_runs_alone_decide_nothing():
    runs = grid(noise=1e-3, sparsities=(0.0,))
    assert "explain the losses alike" in verdict({count: assess(runs, count) for count in COUNTS}, {})


def test_resampled_laws_lie_around_the_law_and_come_again():
    runs = grid(noise=5e-3)
    found = {"average": assess(runs, "average")}
    laws = [fitted["average"][0] for fitted in resample(runs, found, 40)]
    predicted = [float(law.loss(1e8, 2e9)) for law in laws]
    assert min(predicted) < found["average"].law.loss(1e8, 2e9) < max(predicted)
    assert 0 < np.std(predicted) < 0.05
    assert [fitted["average"][0] for fitted in resample(runs, found, 3)] == laws[:3]


def test_a_fit_needs_more_runs_than_constants_and_runs_that_differ():
    with pytest.raises(ValueError, match="6 runs or more are needed to fit five constants, got 5"):
        check_runs(grid()[:5])
    one_budget = [replace(run, tokens=1e9) for run in grid()]
    with pytest.raises(ValueError, match="3 or more different tokens are needed to fit a law, got 1"):
        check_runs(one_budget)
    one_size = [replace(run, average=1e7) for run in grid()]
    with pytest.raises(ValueError, match="3 or more different average parameters"):
        check_runs(one_size)


def test_constants_are_finite_and_not_negative():
    with pytest.raises(ValueError, match="finite and not negative"):
        ScalingLaw(1.0, 1.0, -0.1, 1.0, 0.3)
