"""What the dashboard says of models, on books small enough to check by hand: fronts, differences, answers, choices."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dashboards.book import NO_MODELS, Stage
from dashboards.choice import Choice
from dashboards.numbers import LINE_FLOPS, OVER_DENSE, change, interval, margin, shown, sure
from dashboards.pages.waterfall import worst
from dashboards.pareto import Point, answers, front, nearest
from dashboards.words import describe, differences, fields
from tasks.stage import STAGES, stage_class
from tests.dashboards.books import book, line, pipeline, stage

NUMBERS = {
    "pretrain": {"perplexity": 64.0, "bytes": 8e6, "training_flops": 2e12, "seconds": 100.0},
    "prune": {"perplexity": 70.0, "bytes": 8e6, "seconds": 5.0},
    "recover": {"perplexity": 62.0, "bytes": 8e6, "training_flops": 1e12, "seconds": 40.0},
    "quantize": {"perplexity": 63.0, "bytes": 2.5e6, "seconds": 9.0},
}


def points(*places: tuple[float, float]) -> list[Point]:
    return [Point(stage("prune", f"m{number}"), x, y) for number, (x, y) in enumerate(places)]


def runs(found: list[Point]) -> list[str]:
    return [point.model.run for point in found]


def test_the_kinds_that_make_no_model_are_those_of_the_stages():
    assert set(NO_MODELS) == {name for name in STAGES if stage_class(name).yields != "model"}


def test_nothing_beats_the_front_and_whatever_is_equal_in_one_is_beaten_in_the_other():
    found = points((1, 9), (2, 5), (2, 6), (3, 5), (4, 2), (1, 8))
    assert runs(front(found, "bytes", "perplexity")) == ["m5", "m1", "m4"]
    assert runs(front(found, "decode_tokens_per_second", "accuracy")) == ["m4", "m3", "m2", "m0"]


def test_the_nearest_is_nearest_as_the_plane_is_drawn():
    found = points((1, 1), (10, 1), (100, 1), (130, 1))
    assert [one.model.run for one in nearest(found, (True, False)) if one] == ["m1", "m0", "m3", "m2"]
    assert [one.model.run for one in nearest(found, (False, False)) if one] == ["m1", "m0", "m3", "m2"]
    assert nearest(found[:1], (True, True)) == [None]


def test_a_line_costs_what_all_its_stages_cost_and_is_measured_by_its_dense_model():
    known = book(pipeline(), *line(numbers=NUMBERS))
    last = known.stages["quantize"]
    assert [one.kind for one in known.line(last)] == ["pretrain", "prune", "recover", "quantize"]
    assert known.dense(last) is known.stages["pretrain"]
    assert known.numbers(last)[LINE_FLOPS] == 3e12 and known.numbers(last)[OVER_DENSE] == pytest.approx(63 / 64 - 1)


def test_the_answers_are_the_best_the_smallest_near_dense_and_the_fastest_of_those():
    known = book(pipeline(), *line(numbers=NUMBERS))
    best, smallest, fastest = answers(known, Choice().models(known), 5)
    assert (best.model.run, smallest.model.run, fastest.model) == ("recover", "quantize", None)
    assert smallest.because == "2.50 MB, perplexity 63 (-1.6 % against dense)"
    assert [one.model for one in answers(known, Choice().models(known), -10)][1:] == [None, None]
    assert {one.because for one in answers(known, Choice().models(known), -10)[1:]} == {"the nearest is -3.1 % against dense"}
    assert fastest.model is None and fastest.because == "decoding speed was not measured"
    assert {one.because for one in answers(known, [], 5)} == {"perplexity was not measured"}


def test_a_model_that_broke_is_never_the_best_and_is_named():
    broken = {**NUMBERS, "recover": {**NUMBERS["recover"], "perplexity": math.nan}}
    broken["quantize"] = {"perplexity": math.inf, "bytes": 1.0}
    known = book(pipeline(), *line(numbers=broken))
    best, smallest, _ = answers(known, Choice().models(known), 50)
    assert best.model.run == "pretrain" and smallest.model.run not in ("recover", "quantize")
    assert worst([one for one in line(numbers=broken) if one.makes_a_model], "perplexity") == (
        "recover broke the model: perplexity is NaN."
    )
    assert [shown("bytes", math.nan), shown("perplexity", math.inf), change("perplexity", math.nan, 1.0)] == ["NaN", "∞", ""]


def test_the_stage_that_lost_the_most_is_named_with_its_loss():
    models = [one for one in line(numbers=NUMBERS) if one.makes_a_model]
    assert worst(models, "perplexity") == "prune lost the most: perplexity 64 → 70 (+9.4 %)."
    assert worst(models[:1], "perplexity") == "No two stages in a row have perplexity."


def test_a_difference_is_told_in_the_words_of_the_recipe():
    one = line("0", prune={"method.wanda.scope": "row", "sparsity": "0.5", "batch": "8"}, recover={"tokens": "100"})
    other = line("1", prune={"method.sparsegpt.damping": "0.01", "sparsity": "0.6", "batch": "8"}, recover={"tokens": "100"})
    known = book(pipeline(), *one, *other)
    told = [str(found) for found in differences(known, one[-1], other[-1])]
    assert told == ["prune.method: wanda → sparsegpt", "prune.sparsity: 0.5 → 0.6"]
    assert [str(found) for found in differences(known, one[-1], one[2])] == ["− recover: plain", "− quantize: plain"]
    assert describe(differences(known, one[-1], one[-1])) == "the same recipe"


def test_a_field_below_the_method_is_named_as_set_names_it():
    one = line("0", prune={"method.wanda.scope": "row"})
    other = line("1", prune={"method.wanda.scope": "layer"})
    assert [str(found) for found in differences(book(*one, *other), one[2], other[2])] == [
        "prune.method.wanda.scope: row → layer"
    ]
    assert fields(one[2]) == {"method": "wanda", "method.wanda.scope": "row"}


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?recipe=a,b&state=failed,running&tag=winnow.gates=passes&find=prune.sparsity=0.6&since=2026-11-01&until=2026-11-30",
        "?show=all&x=seconds&y=accuracy.piqa&within=2.5&pick=r1,r2&base=r2&pipeline=p&model=m&columns=bytes,flips&rows=runs",
    ],
)
def test_the_address_holds_the_whole_choice(query):
    assert Choice.of(query).query == query


@pytest.mark.parametrize(
    "query",
    ["?within=²", "?within=1e999", "?within=-3", "?within=nan", "?rows=x&show=y", "?pick=,,&recipe=%20&tag=,", "?%00=%ff"],
)
def test_no_address_is_an_error(query):
    assert Choice.of(query) == Choice()


def test_a_percentage_may_have_a_comma_and_a_day_be_of_any_year():
    assert Choice.of("?within=2,5").within == 2.5
    for day in ("0001-01-01", "9999-12-31"):
        assert Choice.of(f"?since={day}&until={day}").pipelines(book(pipeline())) == []


def test_what_means_nothing_in_an_address_stands_for_the_default():
    assert Choice.of("?within=lots&nosuch=1&since=yesterday") == Choice(since="yesterday")
    known = book(pipeline(), *line())
    assert Choice.of("?since=yesterday").pipelines(known) == list(known) and Choice.of("?recipe=gone").pipelines(known) == []
    assert len(Choice.of(f"?pick={','.join(map(str, range(9)))}").pick) == 6


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", {"p", "q", "r"}),
        ("?recipe=tiny", {"p"}),
        ("?state=cached,running", {"q", "r"}),
        ("?tag=winnow.gates", {"p"}),
        ("?tag=winnow.gates=fails", set()),
        ("?since=2026-11-02", {"q"}),
        ("?until=2026-11-01", {"p", "r"}),
    ],
)
def test_runs_are_chosen_by_recipe_state_tag_and_day(query, found):
    known = book(
        pipeline("p", tags={"winnow.gates": "passes"}, started=_day(1)),
        pipeline("q", "other", tags={"winnow.cached": "true"}, started=_day(2)),
        pipeline("r", "third", "RUNNING", started=_day(1)),
    )
    assert {one.run for one in Choice.of(query).pipelines(known)} == found


def _day(number: int) -> int:
    import time

    return round(1000 * time.mktime((2026, 11, number, 12, 0, 0, 0, 0, -1)))


def test_words_find_models_by_what_their_recipe_says_on_the_whole_line():
    known = book(pipeline(), *line("0", prune={"sparsity": "0.5"}), *line("1", prune={"sparsity": "0.6"}))
    found = {model.run for model, _ in Choice.of("?find=prune.sparsity=0.6 plain").models(known)}
    assert found == {"prune1", "recover1", "quantize1"}


def test_of_many_models_those_are_shown_that_no_other_is_made_from():
    every: list[Any] = [one for number in range(100) for one in line(str(number), numbers=NUMBERS)]
    known = book(pipeline(), *every)
    assert {model.kind for model, _ in Choice().models(known)} == {"quantize"}
    assert len(Choice(show="all").models(known)) == 400


def test_a_stage_taken_over_is_cached_in_one_pipeline_and_finished_in_the_other():
    every: list[Stage] = line(numbers=NUMBERS)
    known = book(pipeline(), pipeline("q", reused={one.id: one.run for one in every}), *every)
    assert [known.state(one, "q") for one in known.stages_of("q")] == ["cached"] * 5
    assert [known.state(one, "p") for one in known.stages_of("p")] == ["finished"] * 5


def test_numbers_are_written_with_their_units_and_their_uncertainty():
    assert [shown("bytes", 2.5e6), shown("sparsity", 0.5), shown("seconds", 0.02), shown("perplexity", 61.18)] == [
        "2.50 MB",
        "50.0 %",
        "20 ms",
        "61.18",
    ]
    assert [change("perplexity", 66.0, 60.0), change("accuracy", 0.5, 0.4), change("bytes", 8.07e6, 8.0701e6)] == [
        "+10.0 %",
        "+10.0 pp",
        "≈",
    ]
    assert interval("accuracy.piqa", {"accuracy.piqa": 0.5, "accuracy_stderr.piqa": 0.1}) == pytest.approx((0.304, 0.696))
    assert interval("perplexity", {"perplexity": 5, "perplexity_low": 4, "perplexity_high": 6}) == (4, 6)


def test_numbers_of_a_column_have_as_many_digits_and_small_shares_are_not_written_as_none():
    assert [shown("perplexity", value) for value in (61.9, 61.94, 62.0, 1234.5)] == ["61.90", "61.94", "62", "1,234"]
    assert [shown("sparsity", value) for value in (0.0, 0.5, 0.00042, 0.000042)] == ["0.0 %", "50.0 %", "0.042 %", "0.0042 %"]
    assert sure("perplexity", {"perplexity": 61.9, "perplexity_low": 51.9, "perplexity_high": 71.886}) == "61.90 ± 10"
    assert margin("bytes", 2000.0) == "2.00 kB"
