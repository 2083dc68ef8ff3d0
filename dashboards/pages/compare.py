"""Compare: two to six models side by side: what differs in their recipes, their numbers against one of them, their curves,
their matrices on one scale, their tasks, and what they came to by their gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dash import dcc, html

from dashboards.book import QUALITY, Stage
from dashboards.charts import curves_figure, heat_figure
from dashboards.numbers import OVER_DENSE, alike, base, better, change, interval, is_sound, metric, rank, sure, title
from dashboards.pages.pareto import axes, nothing
from dashboards.pareto import front, points
from dashboards.sight import Sight, chart, crown, empty, gate, pill, sheet
from dashboards.words import differences

FLIPS = ("flips", "right_to_wrong", "wrong_to_right")
HIDDEN = ("evaluate", "tokens", "loss", "gradient_norm", "learning_rate", "overhead_seconds")


def page(sight: Sight) -> list[Any]:
    picked = list(sight.choice.picked(sight.book))
    models = picked or suggested(sight)
    if not sight.models and not models:
        return [nothing(sight)]
    if len(models) < 2:
        text = "Pick two to six models to compare: tick them in the table, or open one and add it."
        return [empty(text, _told_of(sight, len(picked)))]
    against = next((one for one in models if one.run == sight.choice.base), models[0])
    others = [one for one in models if one is not against]
    ordered = [against, *others]
    told = [_head(sight, ordered, _told_of(sight, len(picked))), *_recipes(sight, against, others), _metrics(sight, ordered)]
    return [*told, *_tasks(sight, ordered), *_curves(sight, ordered), *_layers(sight, ordered)]


def suggested(sight: Sight) -> list[Stage]:
    """Where nobody picked: the two best that no other beats; of one alone, it and the next best."""
    x, y = axes(sight)
    found = sorted(points(sight.models, x, y), key=lambda point: -(better(y) or -1) * point.y)
    kept = {point.model.run for point in front(found, x, y)}
    return [point.model for point in sorted(found, key=lambda point: point.model.run not in kept)[:2]]


def _told_of(sight: Sight, picked: int) -> str:
    """Why these models, where it is not plain."""
    if not sight.choice.pick:
        return "Nothing is picked: these are the two best. Tick others in the table."
    if lacking := len(sight.choice.pick) - picked:
        rest = "" if picked else ": these are the two best"
        return f"Of {len(sight.choice.pick)} picked models MLflow has {lacking} no more, or they are not read yet{rest}."
    return ""


def _head(sight: Sight, models: Sequence[Stage], told: str) -> html.Div:
    rows, whole = [], sight.choice.pick or tuple(one.run for one in models)
    for place, one in enumerate(models):
        left = tuple(run for run in whole if run != one.run)
        other = dcc.Link("make it the baseline", href=sight.page("compare", pick=whole, base=one.run))
        link = dcc.Link(sight.name(one), href=sight.page("model", model=one.run))
        name = html.Span([link, " ", crown(sight, one)])
        away = dcc.Link("take away", href=sight.page("compare", pick=left)) if len(models) > 2 else ""
        state, verdict = pill(sight.book.state(one)), gate(one.gates) or "not judged"
        rows.append([name, other if place else html.B("baseline"), state, html.Code(one.address), verdict, away])
    return sheet(["model", "", "state", "artifact", "gates", ""], rows, told)


def _recipes(sight: Sight, against: Stage, others: Sequence[Stage]) -> list[Any]:
    """Only what differs, in the words of the recipe: a row a field, a column a model."""
    found = [{one.field: one for one in differences(sight.book, against, other)} for other in others]
    fields = list(dict.fromkeys(field for each in found for field in each))
    if not fields:
        return [html.H2("Recipes"), html.P("These models' recipes say the same.")]
    rows = []
    for field in fields:
        ours = next(each[field].left for each in found if field in each)
        theirs = [each[field].right if field in each else ours for each in found]
        rows.append(
            [html.Code(field), *(html.Span("—" if one is None else one or "yes", className="words") for one in (ours, *theirs))]
        )
    return [html.H2("Recipes: what differs"), sheet(["field", *map(sight.name, (against, *others))], rows)]


def _metrics(sight: Sight, models: Sequence[Stage]) -> html.Div:
    numbers = [sight.book.numbers(one) for one in models]
    names = sorted({name for each in numbers for name in each}, key=rank)
    rows = []
    for name in names:
        if base(name) in HIDDEN or name.endswith(("_stderr", "_low", "_high")) or "_stderr." in name or "." in name:
            continue
        if len({str(each.get(name)) for each in numbers}) == 1:
            continue
        rows.append([html.Span(title(name), title=metric(name).meaning), *_cells(name, numbers)])
    head = ["metric", *map(sight.name, models)]
    return html.Div([html.H2("Numbers: what differs"), sheet(head, rows, "± is half of a 95 % interval", "numbers")])


def _cells(name: str, numbers: Sequence[Mapping[str, float]]) -> list[Any]:
    """The baseline's number, then those of the others with their difference to it."""
    told: list[Any] = [sure(name, numbers[0]) or "—"]
    for each in numbers[1:]:
        moved = html.Small(_against(name, each, numbers[0]), className=_verdict(name, each, numbers[0]))
        told.append(html.Span([sure(name, each) or "—", moved]))
    return told


def _against(name: str, numbers: Mapping[str, float], others: Mapping[str, float]) -> str:
    if name not in numbers or name not in others:
        return ""
    sure_of = QUALITY if name == OVER_DENSE else name  # which is perplexity in other words
    ours, theirs = interval(sure_of, numbers), interval(sure_of, others)
    noise = ours and theirs and ours.low <= theirs.high and theirs.low <= ours.high
    return f" {change(name, numbers[name], others[name])}" + (", intervals overlap" if noise else "")


def _verdict(name: str, numbers: Mapping[str, float], others: Mapping[str, float]) -> str:
    if (
        name not in numbers
        or name not in others
        or not better(name)
        or not is_sound(name, others)
        or alike(numbers[name], others[name])
        or "overlap" in _against(name, numbers, others)
    ):
        return ""
    return "good" if better(name) * (numbers[name] - others[name]) >= 0 else "bad"


def _tasks(sight: Sight, models: Sequence[Stage]) -> list[Any]:
    """Numbers that were measured apart, of a task, a text or a setting, and the answers that changed."""
    numbers = [one.numbers for one in models]
    names = sorted({name for each in numbers for name in each if "." in name and base(name) not in HIDDEN}, key=_of_task)
    names = [name for name in names if "_stderr" not in name and "_low." not in name and "_high." not in name]
    if not names:
        return []
    rows = [[name.partition(".")[2], title(base(name)), *_cells(name, numbers)] for name in names]
    caption = (
        "flips: answers that changed between right and wrong from the reference model's" if any(map(_is_flip, names)) else ""
    )
    return [html.H2("Tasks, texts and settings"), sheet(["of", "metric", *map(sight.name, models)], rows, caption, "numbers")]


def _of_task(name: str) -> tuple[str, tuple[int, str]]:
    return name.partition(".")[2], rank(name)


def _is_flip(name: str) -> bool:
    return base(name) in FLIPS


def _curves(sight: Sight, models: Sequence[Stage]) -> list[Any]:
    """Of every training that the models came by, each once."""
    every = {one.run: one for model in models for one in sight.book.line(model)}
    lines = [(sight.name(one), one, sight.reading.curves(one)) for one in every.values()]
    lines = [line for line in lines if "loss" in line[2]]
    return [html.H2("Training"), chart("curves", curves_figure(lines[:6]), "training loss")] if lines else []


def _layers(sight: Sight, models: Sequence[Stage]) -> list[Any]:
    found = [(sight.name(one), sight.reading.layers(one)) for one in models]
    told: list[Any] = []
    for what, heading in (("sparsity", "Sparsity by matrix"), ("error", "Error that a stage left, by block")):
        maps = [(name, layers[what]) for name, layers in found if layers.get(what)]
        if maps:
            told += [html.H2(heading), chart(f"heat-{what}", heat_figure(maps, what), heading)]
    return told
