"""What stands around every page: the tabs, the controls of the choice, and how much of MLflow is known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dash import dcc, html

from dashboards.choice import STATES, axes
from dashboards.numbers import COSTS, OF_A_LINE, base, better, is_quality, rank, title
from dashboards.sight import Sight, many
from tasks.metrics import METRICS

AGAIN = "reads all of MLflow anew: what was deleted there, or tagged by hand, is seen then"
ASSETS = Path(__file__).parent / "assets"
KEPT = {"Graph": ("figure", "style"), "AgGrid": ("rowData",)}  # and what of them is set anew
LATER = re.compile(r"<script (src=[^>]*/dash_ag_grid[^>]*>)")  # half of all scripts, and the table's alone
INDEX = """<!doctype html>
<html lang="en"><head>{%metas%}<meta name="color-scheme" content="light dark"><title>{%title%}</title>{%favicon%}{%css%}</head>
<body>{%app_entry%}<footer>{%config%}{%scripts%}{%renderer%}</footer></body></html>"""


def interpolated(draw: Callable[..., str]) -> Callable[..., str]:
    """Dash's index, which waits for no script that only some pages need."""
    return lambda **parts: draw(**{**parts, "scripts": LATER.sub(r"<script defer \1", parts["scripts"])})


def layout(poll: int) -> html.Div:
    return html.Div(
        [
            dcc.Location(id="url", refresh="callback-nav"),
            dcc.Store(id="version"),
            dcc.Store(id="seen"),
            dcc.Store(id="drawn"),
            dcc.Store(id="shape"),
            dcc.Store(id="choices", data={"recipe": [], "y": _all(), "x": _all()}),
            dcc.Interval(id="poll", interval=poll),
            html.A("to the page", href="#page", className="skip"),
            html.Header(
                [
                    html.Strong("Winnow", className="brand"),
                    html.Nav(id="tabs", **{"aria-label": "pages"}),
                    html.Strong(id="away", className="bad", role="alert"),
                    html.Span(id="known", role="status"),
                    html.Button("read again", id="again", title=AGAIN),
                    html.Button("light / dark", id="theme", title="light, dark, or as the system has it"),
                ]
            ),
            _controls(),
            html.Main(html.Div("Reading MLflow …", className="empty"), id="page", tabIndex="-1"),
        ]
    )


def _controls() -> html.Div:
    states = [{"label": state, "value": state} for state in STATES]
    shows = [{"label": "final models", "value": "final"}, {"label": "every stage's model", "value": "all"}]
    return html.Div(
        [
            _control("recipes", dcc.Dropdown(id="c-recipe", multi=True, placeholder="all"), 13),
            _control("words", dcc.Input(id="c-find", debounce=0.3, placeholder="prune.sparsity=0.6 wanda", type="search"), 14),
            _control("state", dcc.Dropdown(states, id="c-state", multi=True, placeholder="any"), 9),
            _control("tag", dcc.Input(id="c-tag", debounce=0.3, placeholder="name=value", type="search"), 10),
            _control("from", dcc.Input(id="c-since", debounce=0.3, placeholder="2026-11-01", maxLength=10), 8),
            _control("to", dcc.Input(id="c-until", debounce=0.3, placeholder="2026-11-30", maxLength=10), 8),
            _control("models", dcc.Dropdown(shows, id="c-show", placeholder="what fits"), 10),
            _control("quality", dcc.Dropdown(id="c-y", clearable=False), 14),
            _control("cost", dcc.Dropdown(id="c-x", clearable=False), 14),
            _control("within %", dcc.Input(id="c-within", debounce=0.3, type="text", maxLength=4), 6),
        ],
        className="controls",
        role="search",
    )


def _all() -> list[dict[str, Any]]:
    """Before anything is read, whatever a link may name is a choice."""
    return [{"label": title(name), "value": name} for name in {**METRICS, **OF_A_LINE}]


def _control(label: str, control: Any, width: int) -> html.Label:
    return html.Label([html.Span(label), control], style={"flex": f"{width} 1 {width * 0.55}em"})


def tab(name: str, address: str, here: bool) -> dcc.Link:
    return dcc.Link(name, href=address, className="to-page here" if here else "to-page")


def page(id: str, title: str, parts: Sequence[Any]) -> html.Div:
    every = [html.Div(part, id=f"part-{number}") for number, part in enumerate(parts)]
    return html.Div(every, id=id, **{"aria-label": title})


def shape(part: Any) -> str:
    """What stays of a part of a page when its numbers change."""
    columns = [one.get("colId") or one.get("field", "") for one in getattr(part, "columnDefs", ())]
    return " ".join([part._type, str(part.id) if part._type in KEPT else "", *columns])


def told(part: Any) -> str:
    """By which a part that says the same is known, and not sent again; nothing of one that is mostly numbers, or that the
    browser fills."""
    return "" if part._type in KEPT or getattr(part, "id", "") == "hovered" else str(hash(repr(part)))


def changes(number: int, part: Any) -> tuple[Any, dict[str, Any]]:
    """Which component is to have which properties, for the page to show a part anew."""
    if part._type not in KEPT:
        return f"part-{number}", {"children": part}
    return part.id, {name: getattr(part, name) for name in KEPT[part._type]}


def known(sight: Sight) -> list[Any]:
    """How much is read, and what keeps the rest."""
    reading, runs = sight.reading, len(sight.book.pipelines)
    chosen = f"{len(sight.pipelines):,} of " if len(sight.pipelines) != runs else ""
    told: list[Any] = [
        html.Span(
            f"{chosen}{many(runs, 'run')}, {many(len(sight.models), 'model')}"
            + (", reading all again …" if reading.anew else "" if reading.complete else ", reading on …")
        )
    ]
    if len(sight.pipelines) < runs:
        told.append(dcc.Link("all runs", href=sight.places.prefix, className="button"))
    told += [html.Strong(one, className="bad", role="alert") for one in sight.choice.misread]
    if reading.trouble:
        told.append(html.Strong(reading.trouble, className="bad", role="alert"))
    return told


def choices(sight: Sight) -> dict[str, list[dict[str, Any]]]:
    """By control those that follow from what was read."""
    runs = Counter(one.recipe for one in sight.book)
    found = axes(sight.metrics) or [sight.choice.y, sight.choice.x]
    quality = sorted(filter(is_quality, found), key=rank)
    costly = (name for name in found if not is_quality(name) and "_stderr" not in name)
    costs = sorted(costly, key=lambda name: (base(name) not in COSTS, rank(name)))
    recipes = [{"label": f"{name} ({count})", "value": name} for name, count in runs.items()]
    metrics = {
        axis: [{"label": f"{title(name)}{_arrow(name)}", "value": name} for name in names]
        for axis, names in (("y", quality), ("x", costs))
    }
    return {"recipe": recipes, **metrics}


def _arrow(name: str) -> str:
    return {1: " ↑", -1: " ↓", 0: ""}[better(name)]
