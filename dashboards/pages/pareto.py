"""Pareto: which model to ship, and what it costs: three answers, the plane of quality and cost, and the models of the front."""

from __future__ import annotations

import html as markup
from typing import Any

from dash import dcc, html

from dashboards.book import QUALITY, Book, Stage
from dashboards.numbers import OVER_DENSE, SPEEDS, is_sound, shown, sure, title
from dashboards.pareto import Answer, Point, answers, front, nearest, points, spread_out
from dashboards.plane import pareto_figure
from dashboards.sight import Sight, chart, crown, empty, gate, many, pill, sheet
from dashboards.words import describe, differences

MOST_LISTED, MOST_TOLD = 12, 300
SIGNS = {"pretrain": "●", "load": "●", "prune": "■", "recover": "◆", "quantize": "▲"}  # as the figure draws them
OTHER_SIGN = "⬢"


def page(sight: Sight) -> list[Any]:
    if not sight.models:
        return [nothing(sight)]
    x, y = axes(sight)
    found = points(sight.models, x, y)
    best = front(found, x, y)
    told = [
        html.Div([_answer(sight, one) for one in answers(sight.book, sight.models, sight.choice.within)], className="answers"),
        *_mixed(sight),
    ]
    if not found:
        return [*told, empty(f"No chosen model has both {title(x)} and {title(y)} yet.", _running(sight))]
    told += [_chart(sight, found, best, (x, y)), html.P(id="hovered", className="words", role="status")]
    return [*told, _listed(sight, best, len(found), _signs(found))]


def _mixed(sight: Sight) -> list[html.P]:
    """A word of warning where models of different data are looked at together."""
    texts = {sight.book.data(model) for model, _ in sight.models} - {None}
    if len(texts) < 2:
        return []
    said = f"Models of {len(texts)} different data: perplexities of different texts or tokenizers do not compare."
    relative = dcc.Link(f"{title(OVER_DENSE)} as quality", href=sight.page("", y=OVER_DENSE))
    return [html.P([said, " Choose a recipe, or ", relative, "."], className="words", role="note")]


def axes(sight: Sight) -> tuple[str, str]:
    """The chosen metrics; where no model has one of them, the first that some model has."""
    y = sight.choice.y if sight.choice.y in sight.metrics or QUALITY not in sight.metrics else QUALITY
    return sight.choice.x, y


def nothing(sight: Sight) -> html.Div:
    """Why there is nothing to see: nothing is there yet, nothing is read yet, or nothing fits the choice."""
    if sight.book.pipelines and not sight.pipelines:
        return empty(
            f"No run of {len(sight.book.pipelines):,} fits this choice.", dcc.Link("Show all", href=sight.places.prefix)
        )
    if sight.pipelines:
        return empty("The chosen runs have made no model yet.", _running(sight))
    if not sight.reading.complete:
        return empty("Reading MLflow …")
    return empty(
        "MLflow has no run of a recipe yet.", [html.Code("winnow run quickstart"), " makes one in about five minutes."]
    )


def _running(sight: Sight) -> str:
    running = [one.recipe for one in sight.pipelines if one.state == "running"]
    return f"Running: {', '.join(running)}; this page follows." if running else ""


def _answer(sight: Sight, answer: Answer) -> html.Div:
    if answer.model is None:
        return html.Div([html.H2(answer.question), html.P("none", className="big"), html.P(answer.because)], className="answer")
    link = dcc.Link(sight.name(answer.model), href=sight.page("model", model=answer.model.run), className="big")
    told = [html.P([link, " ", crown(sight, answer.model)]), html.P(answer.because)]
    return html.Div([html.H2(answer.question), *told], className="answer")


def _chart(sight: Sight, found: list[Point], best: list[Point], names: tuple[str, str]) -> Any:
    """Of many points a hover has the numbers; what tells one from its neighbour is asked for as it is hovered."""
    neighbours = _neighbours(found) if len(found) <= MOST_TOLD else [None] * len(found)
    hovers = {
        point.model.run: hover(sight, point.model, other.model if other else None)
        for point, other in zip(found, neighbours, strict=True)
    }
    labels = {point.model.run: sight.name(point.model) for point in best}
    figure = pareto_figure(found, best, names, hovers, labels, sight.choice.pick, _limit(sight, names[1]), sight.choice.query)
    return chart("pareto", figure, f"{title(names[1])} over {title(names[0])}")


def _neighbours(found: list[Point]) -> list[Point | None]:
    return nearest(found, (spread_out([point.x for point in found]), spread_out([point.y for point in found])))


def hovered(sight: Sight, run: str) -> str:
    """Of one of many points what its hover does not say."""
    found = points(sight.models, *axes(sight))
    place = next((place for place, point in enumerate(found) if point.model.run == run), None)
    if place is None or len(found) <= MOST_TOLD or (other := _neighbours(found)[place]) is None:
        return ""
    told = describe(differences(sight.book, other.model, found[place].model)).replace("\n", ", ")
    return f"{sight.name(found[place].model)} other than its neighbour {sight.name(other.model)}: {told}"


def _limit(sight: Sight, y: str) -> tuple[float, str] | None:
    """Where all lines begin with one dense model: the quality that is near enough to its."""
    if y == OVER_DENSE:
        return sight.choice.within / 100, f"dense + {sight.choice.within:g} %"
    dense = {one.run: one for model, _ in sight.models for one in [sight.book.dense(model)] if one}
    if y != QUALITY or len(dense) != 1 or not is_sound(QUALITY, (only := next(iter(dense.values()))).numbers):
        return None
    return only.numbers[QUALITY] * (1 + sight.choice.within / 100), f"dense + {sight.choice.within:g} %"


def hover(sight: Sight, model: Stage, other: Stage | None) -> str:
    """A model in a few lines, and what tells it from its neighbour in the words of their recipes."""
    lines = [
        f"<b>{markup.escape(sight.name(model))}</b>",
        *sight.book.once("hover", model.run, made=lambda: _told(sight.book, model)),
    ]
    if other is not None:
        told = describe(differences(sight.book, other, model))
        lines.append(f"<br><i>other than its neighbour {markup.escape(sight.name(other))}:</i>")
        lines += [markup.escape(line) for line in told.split("\n")]
    return "<br>".join(lines)


def _signs(found: list[Point]) -> str:
    """Each sign once, with all that it stands for."""
    kinds: dict[str, list[str]] = {}
    for kind in dict.fromkeys(point.model.kind for point in found):
        kinds.setdefault(SIGNS.get(kind, OTHER_SIGN), []).append(kind)
    return " ".join(f"{sign} {', '.join(its)}" for sign, its in kinds.items())


def _told(book: Book, model: Stage) -> list[str]:
    numbers = book.numbers(model)
    names = [name for name in (QUALITY, OVER_DENSE, "bytes", "sparsity", *SPEEDS[:1]) if name in numbers]
    aliases = [f"★ {markup.escape(alias)}" for alias in book.aliases.get(model.address, ())]
    return [f"{model.method}, {book.state(model)}", *aliases, *(f"{title(name)} {sure(name, numbers)}" for name in names)]


def _listed(sight: Sight, best: list[Point], total: int, signs: str) -> Any:
    """The front as a table, the cheapest first, each beside the one before."""
    names = dict.fromkeys([QUALITY, OVER_DENSE, "sparsity", "bytes", SPEEDS[0], sight.choice.y, sight.choice.x])
    told = [name for name in names if any(name in sight.book.numbers(point.model) for point in best)]
    rows, before = [], None
    for point in best[:MOST_LISTED]:
        numbers = sight.book.numbers(point.model)
        link = dcc.Link(sight.name(point.model), href=sight.page("model", model=point.model.run))
        words = describe(differences(sight.book, before, point.model), 3) if before else ""
        cells = [shown(name, numbers.get(name)) for name in told]
        name, state = html.Span([link, " ", crown(sight, point.model)]), pill(sight.book.state(point.model))
        rows.append([name, state, *cells, gate(point.model.gates), html.Span(words, className="words")])
        before = point.model
    head = ["model", "state", *map(title, told), "gates", "other than the one above"]
    if not any(point.model.gates for point in best):
        head, rows = [one for one in head if one != "gates"], [[*row[:-2], row[-1]] for row in rows]
    beaten = "is" if len(best) == 1 else "are"
    more = f"; the first {MOST_LISTED} of them" if len(best) > MOST_LISTED else ""
    return sheet(head, rows, f"{len(best)} of {many(total, 'model')} {beaten} beaten by none{more}. {signs}", "numbers")
