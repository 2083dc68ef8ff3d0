"""One model: where it came from in the words of its recipe, its numbers, its curves and matrices, and where it lies."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from dashboards.book import Stage
from dashboards.charts import curves_figure, heat_figure
from dashboards.numbers import base, interval, metric, rank, shown, title
from dashboards.sight import Sight, chart, crown, gate, gone, links, pill, sheet
from dashboards.words import fields


def page(sight: Sight) -> list[Any]:
    model = sight.book.stages.get(sight.choice.model)
    if model is None:
        return [gone(sight, "model", dcc.Link("All models", href=sight.page("", model="")))]
    line = sight.book.line(model)
    return [_head(sight, model), _line(sight, line), _numbers(sight, model), *_curves(sight, line), *_layers(sight, model)]


def _head(sight: Sight, model: Stage) -> html.Div:
    maker = sight.book.pipelines.get(model.maker)
    pick = sight.choice.pick
    added = [dcc.Link("Compare", href=sight.page("compare"), className="button")] if model.run in pick else []
    if model.run not in pick:
        more = (*pick, model.run)[-6:]
        added = [
            dcc.Link(
                "Add to the comparison", href=sight.page("compare" if len(more) > 1 else "model", pick=more), className="button"
            )
        ]
    told = [
        html.H2(sight.name(model)),
        pill(sight.book.state(model)),
        gate(model.gates),
        crown(sight, model),
        *added,
        dcc.Link("Waterfall", href=sight.page("waterfall", pipeline=model.maker, model=model.run), className="button"),
        *links(("MLflow", sight.mlflow(model.run)), ("Prefect", sight.prefect(maker) if maker else "")),
    ]
    where = html.P(["artifact ", html.Code(model.address), " · take it by ", html.Code(f"winnow export {model.address} DIR")])
    return html.Div(
        [html.Div(told, className="head"), where, *([html.P(model.note, className="bad words")] if model.note else [])]
    )


def _line(sight: Sight, line: list[Stage]) -> html.Div:
    """Its recipe: of each stage of its line the fields that it was made with."""
    rows = []
    for one in line:
        told = ", ".join(f"{name}: {value}" for name, value in fields(one).items() if len(value) < 80)
        rows.append([dcc.Link(one.id, href=sight.page("model", model=one.run)), one.method, html.Span(told, className="words")])
    return html.Div([html.H2("Recipe"), sheet(["stage", "method", "fields"], rows)])


def _numbers(sight: Sight, model: Stage) -> html.Div:
    numbers = sight.book.numbers(model)
    names = [
        name
        for name in sorted(numbers, key=rank)
        if base(name) != "evaluate" and not name.endswith(("_low", "_high", "_stderr"))
    ]
    rows = []
    for name in names:
        known = interval(name, numbers)
        sure = f"{shown(name, known.low)} … {shown(name, known.high)}" if known else ""
        rows.append([title(name), shown(name, numbers[name]), sure, html.Small(metric(name).meaning)])
    return html.Div([html.H2("Numbers"), sheet(["metric", "value", "95 % interval", "what it is"], rows, "", "numbers")])


def _curves(sight: Sight, line: list[Stage]) -> list[Any]:
    lines = [(one.id, one, sight.reading.curves(one)) for one in line]
    lines = [found for found in lines if "loss" in found[2]]
    return [html.H2("Training"), chart("curves", curves_figure(lines), "training loss")] if lines else []


def _layers(sight: Sight, model: Stage) -> list[Any]:
    layers = sight.reading.layers(model)
    told: list[Any] = []
    for what in ("sparsity", "error"):
        if layers.get(what):
            heading = f"{what.capitalize()} by {'matrix' if what == 'sparsity' else 'block'}"
            told += [html.H2(heading), chart(f"heat-{what}", heat_figure([(model.id, layers[what])], what), heading)]
    return told
