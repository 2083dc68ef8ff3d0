"""Waterfall: one pipeline, stage by stage: what each did to quality, size and speed, and what it cost in time."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from dashboards.book import QUALITY, Pipeline, Stage
from dashboards.charts import waterfall_figure
from dashboards.numbers import SPEEDS, alike, better, change, is_sound, metric, shown, title
from dashboards.pages.pareto import nothing
from dashboards.sight import Sight, chart, empty, gone, links, pill, sheet


def page(sight: Sight) -> list[Any]:
    if not sight.pipelines:
        return [nothing(sight)]
    if sight.choice.pipeline and sight.choice.pipeline not in sight.book.pipelines:
        return [gone(sight, "run", dcc.Link("The newest run", href=sight.page("waterfall", pipeline="", model="")))]
    pipeline = chosen(sight)
    ends = _ends(sight, pipeline)
    if not ends:
        return [_head(sight, pipeline, None, []), empty("This run has made no model yet.")]
    end = next((one for one in ends if one.run == sight.choice.model), None) or ends[0]
    line = sight.book.line(end)
    names = _names(sight, line)
    figure = waterfall_figure([(one.id, one.numbers) for one in line], names)
    return [
        _head(sight, pipeline, end, ends),
        html.P(worst(line, names[0]), className="finding"),
        chart("waterfall", figure, "what each stage did"),
        _table(sight, pipeline, line, names),
    ]


def chosen(sight: Sight) -> Pipeline:
    """The pipeline that is asked for; else the newest of which two models were measured, or one, or with any."""
    asked = sight.book.pipelines.get(sight.choice.pipeline)
    made = [one for one in sight.pipelines if sight.book.models_of(one.run)]
    measured = {
        one.run: sum(QUALITY in model.numbers for model in sight.book.models_of(one.run).values()) for one in sight.pipelines
    }
    told = (one for least in (2, 1) for one in made if measured[one.run] >= least)
    return asked or next(told, (made or sight.pipelines)[0])


def _ends(sight: Sight, pipeline: Pipeline) -> list[Stage]:
    """The models of a pipeline that no other is made from, the best first."""
    models, used = sight.book.models_of(pipeline.run).values(), sight.book.used(pipeline.run)
    worth = lambda one: (not is_sound(QUALITY, one.numbers), one.numbers.get(QUALITY, 0.0), one.id)  # noqa: E731
    return sorted((one for one in models if one.address not in used), key=worth)


def _names(sight: Sight, line: list[Stage]) -> list[str]:
    known = {name for one in line for name in one.numbers}
    y = sight.choice.y if sight.choice.y in known else QUALITY
    speed = next((name for name in SPEEDS if name in known), SPEEDS[0])
    return [y, "bytes", speed, "seconds"]


def worst(line: list[Stage], name: str) -> str:
    """Which stage lost the most of the quality that the one before had."""
    broken = (one for before, one in _pairs(line) if is_sound(name, before.numbers) and name in one.numbers)
    if one := next((one for one in broken if not is_sound(name, one.numbers)), None):
        return f"{one.id} broke the model: {title(name)} is {shown(name, one.numbers[name])}."
    sign = better(name) or -1
    told = [
        (one, before.numbers[name], one.numbers[name])
        for before, one in _pairs(line)
        if is_sound(name, before.numbers) and is_sound(name, one.numbers)
    ]
    losses = [(sign * (after - before), one, before, after) for one, before, after in told]
    if not losses:
        return f"No two stages in a row have {title(name)}."
    loss, one, before, after = min(losses, key=lambda found: found[0])
    if loss >= 0:
        return f"No stage lost {title(name)}."
    return (
        f"{one.id} lost the most: {title(name)} {shown(name, before)} → {shown(name, after)} ({change(name, after, before)})."
    )


def _pairs(line: list[Stage]) -> list[tuple[Stage, Stage]]:
    return list(zip(line, line[1:], strict=False))


def _head(sight: Sight, pipeline: Pipeline, end: Stage | None, ends: list[Stage]) -> html.Div:
    others = [one for one in sight.pipelines if one.run != pipeline.run][:6]
    told = [
        html.H2(pipeline.recipe),
        pill(pipeline.state),
        *links(("MLflow", sight.mlflow(pipeline.run)), ("Prefect", sight.prefect(pipeline))),
    ]
    if len(ends) > 1:
        told += [html.Span("model:"), *_links(sight, pipeline, ends[:8], end)]
        told += [html.Span(f"and {len(ends) - 8} more; open one from the table")] if len(ends) > 8 else []
    if others:
        named = [
            dcc.Link(f"{one.recipe} {one.run[:4]}", href=sight.page("waterfall", pipeline=one.run, model="")) for one in others
        ]
        told += [html.Span("other runs:"), *named]
    return html.Div(told, className="head")


def _links(sight: Sight, pipeline: Pipeline, ends: list[Stage], end: Stage | None) -> list[Any]:
    return [
        html.B(one.id) if one is end else dcc.Link(one.id, href=sight.page("waterfall", pipeline=pipeline.run, model=one.run))
        for one in ends
    ]


def _table(sight: Sight, pipeline: Pipeline, line: list[Stage], names: list[str]) -> html.Div:
    """The numbers behind the bars."""
    rows = []
    for before, one in zip([None, *line], line, strict=False):
        cells: list[Any] = [pill(sight.book.state(one, pipeline.run)), one.method]
        for name in (*names, "training_flops"):
            value, last = one.numbers.get(name), before.numbers.get(name) if before else None
            moved = change(name, value, last) if metric(name).unit not in ("s", "FLOP") else ""
            cells.append(
                html.Span([shown(name, value), html.Small(f" {moved}" if moved else "", className=_good(name, value, last))])
            )
        rows.append([dcc.Link(one.id, href=sight.page("model", model=one.run)), *cells])
    return sheet(["stage", "state", "method", *map(title, names), "training FLOPs"], rows, "", "numbers")


def _good(name: str, value: float | None, before: float | None) -> str:
    if value is None or before is None or alike(value, before) or not better(name):
        return ""
    return "good" if better(name) * (value - before) > 0 else "bad"
