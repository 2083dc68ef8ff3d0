"""Schedules are the published ones, to the step, and pure in the step."""

from __future__ import annotations

import random

import pytest

from tasks.train.schedule import ComputeWindow, ExponentialDensity, LearningRate

# The Journey Matters (arXiv 2501.12486), C = 10 000 dense steps: final sparsity, total steps, end of window, mean density.
JOURNEY = [
    (0.2, 11_204, 8_079, 0.8926),
    (0.4, 13_052, 8_885, 0.7662),
    (0.6, 16_386, 10_136, 0.6103),
    (0.8, 25_059, 12_559, 0.3991),
]


def densities(schedule: ExponentialDensity, steps: int) -> list[float]:
    return [1 - schedule.at(step) for step in range(steps)]


@pytest.mark.parametrize(("sparsity", "total", "end", "mean"), JOURNEY)
def test_the_window_in_compute_gives_the_published_step_counts(sparsity, total, end, mean):
    assert ComputeWindow(sparsity).steps(10_000) == (2_500, end, total)
    assert 10_000 / total == pytest.approx(mean, abs=1e-4)


def test_the_window_gives_the_steps_of_the_published_configs():
    """llama2-1b.yml has 72 200 / 12 500 / 47 200 at 50 %; the 70m file 26 800 / 4 100 / 16 600 at 60 %."""
    assert ComputeWindow(0.5).steps(50_000) == (12_500, 47_157, 72_157)
    assert ComputeWindow(0.6).steps(16_400) == (4_100, 16_623, 26_873)


@pytest.mark.parametrize("sparsity", [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("interval", [1, 100])
def test_live_weights_times_tokens_are_the_budget_whatever_the_sparsity(sparsity, interval):
    start, end, total = ComputeWindow(sparsity).steps(10_000, interval)
    spent = sum(densities(ExponentialDensity(sparsity, start, end, interval), total))
    assert spent == pytest.approx(10_000, rel=0.01)


def test_the_window_is_a_whole_number_of_intervals():
    start, end, total = ComputeWindow(0.8).steps(1_000, 100)
    assert (end - start) % 100 == 0 and start == 250 and total == end + 1_250


def test_no_sparsity_means_the_dense_run():
    assert ComputeWindow(0.0).steps(123, 10)[2] == 123


def test_event_i_of_n_keeps_the_published_share():
    schedule = ExponentialDensity(0.75, 10, 40, 10)
    assert schedule.events == 4
    assert [step for step in range(100) if schedule.due(step)] == [10, 20, 30, 40]
    kept = [1 - schedule.at(step) for step in (0, 9, 10, 19, 20, 30, 40, 99)]
    assert kept == pytest.approx([1, 1, 0.25**0.25, 0.25**0.25, 0.25**0.5, 0.25**0.75, 0.25, 0.25])


def test_sparsity_never_falls_and_moves_only_where_an_event_is_due():
    schedule = ExponentialDensity(0.9, 7, 49, 6)
    for step in range(1, 80):
        change = schedule.at(step) - schedule.at(step - 1)
        assert (change > 0) == schedule.due(step) and change >= 0


def test_schedules_are_pure_in_the_step():
    schedule, rate = ExponentialDensity(0.9, 7, 49, 6), LearningRate(1.0, 80)
    shuffled = random.Random(0).sample(range(80), 80)
    seen = {step: (schedule.at(step), schedule.due(step), rate.at(step)) for step in shuffled}
    assert [seen[step] for step in range(80)] == [(schedule.at(step), schedule.due(step), rate.at(step)) for step in range(80)]


def test_the_learning_rate_warms_up_peaks_and_falls_to_its_last_share():
    rate = LearningRate(2.0, 1_000, warmup=0.1, final=0.25)
    assert [rate.at(step) for step in (0, 49, 99)] == pytest.approx([0.02, 1.0, 2.0])
    assert rate.at(100) == 2.0 and rate.at(550) == pytest.approx(2 * (0.25 + 0.75 / 2)) and rate.at(1_000) == pytest.approx(0.5)
    assert rate.at(999) == pytest.approx(0.5, rel=1e-4)


def test_a_run_of_one_step_has_a_learning_rate():
    assert LearningRate(1.0, 1).at(0) == 1.0
