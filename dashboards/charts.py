"""The interactive figures of the dashboard: the same on the live page and in the file that a run keeps.

Colours are those of Okabe and Ito, which stay apart for every kind of colour vision; what a colour says, a form or a sign
says too. Text and lines take their colour from the page's style, light or dark.
"""

from __future__ import annotations

import html as markup
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.book import Stage
from dashboards.layers import cells
from dashboards.numbers import better, change, is_sound, metric, shown, title

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8a8f98"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
CONFIG = {"displaylogo": False, "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d"]], "responsive": True}
LAYOUT = {
    "margin": {"l": 64, "r": 24, "t": 36, "b": 52},
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "hoverlabel": {"bgcolor": "#20262e", "bordercolor": "#20262e", "font": {"color": "#ffffff", "size": 12}, "align": "left"},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
}
AXIS = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False, "automargin": True}


def _layout(figure: go.Figure, height: int, **more: Any) -> go.Figure:
    figure.update_layout(template="none", height=height, **LAYOUT, **more)
    figure.update_xaxes(**AXIS)
    figure.update_yaxes(**AXIS)
    return figure


def label(text: str, most: int = 16) -> str:
    """A name as plotly is to draw it, as text and no markup; of a long one its ends, by which those of a grid differ."""
    short = text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
    return markup.escape(short, quote=False)


def waterfall_figure(stages: Sequence[tuple[str, Mapping[str, float]]], names: Sequence[str]) -> go.Figure:
    """What each stage of a line did to each of a few numbers; times add up, all else goes on from the model before."""
    rows = (len(names) + 1) // 2
    figure = make_subplots(
        rows, 2, subplot_titles=[title(name) for name in names], horizontal_spacing=0.08, vertical_spacing=0.2
    )
    for place, name in enumerate(names):
        row, column = place // 2 + 1, place % 2 + 1
        known = [(id, numbers[name]) for id, numbers in stages if is_sound(name, numbers)]
        if not known:
            axis = f"{place + 1 if place else ''} domain"
            where = {"xref": f"x{axis}", "yref": f"y{axis}", "x": 0.5, "y": 0.5}
            figure.add_annotation(text="not measured", showarrow=False, **where)
            figure.add_trace(go.Scatter(x=[], y=[]), row, column)
            figure.update_xaxes(visible=False, row=row, col=column)
            figure.update_yaxes(visible=False, row=row, col=column)
            continue
        figure.add_trace(_bars(known, name), row, column)
        names_of = [*(label(id) for id, _ in known), "end"]
        figure.update_xaxes(tickvals=list(range(len(names_of))), ticktext=names_of, showgrid=False, row=row, col=column)
        levels = _levels(known, name)
        low, high = (0.0, max(levels)) if _adds_up(name) else (min(levels), max(levels))
        room = max(high - low, 0.05 * abs(high)) or 1.0  # what hardly moved is to look like it
        figure.update_yaxes(
            range=[0 if _adds_up(name) else max(0.0, low - 0.35 * room), high + 0.25 * room], row=row, col=column
        )
        if metric(name).unit in ("B", "s"):
            figure.update_yaxes(ticksuffix={"B": "B", "s": " s"}[metric(name).unit], row=row, col=column)
        if metric(name).unit == "share":
            figure.update_yaxes(tickformat=".0%", row=row, col=column)
    figure.update_yaxes(exponentformat="SI", nticks=5)
    return _layout(figure, 240 * rows + 40, showlegend=False)


def _adds_up(name: str) -> bool:
    return metric(name).unit in ("s", "FLOP")


def _levels(known: Sequence[tuple[str, float]], name: str) -> list[float]:
    values = [value for _, value in known]
    return [sum(values)] if _adds_up(name) else values


def _bars(known: Sequence[tuple[str, float]], name: str) -> go.Waterfall:
    values = [value for _, value in known]
    if _adds_up(name):
        steps, text = values, [shown(name, value) for value in values]
    else:
        steps = [values[0], *(value - before for before, value in zip(values, values[1:], strict=False))]
        text = [shown(name, values[0])]
        text += [change(name, value, before) for before, value in zip(values, values[1:], strict=False)]
    worse, good = {"color": VERMILLION}, {"color": GREEN}
    rising, falling = (good, worse) if better(name) > 0 else (worse, good)
    if _adds_up(name):
        rising = {"color": SKY}
    return go.Waterfall(
        x=list(range(len(known) + 1)),  # and not by their names, of which two may be shortened to one
        y=[*steps, 0],
        measure=["relative" if _adds_up(name) else "absolute", *(["relative"] * (len(known) - 1)), "total"],
        text=[*text, shown(name, sum(values) if _adds_up(name) else values[-1])],
        textposition="outside",
        cliponaxis=False,
        constraintext="none",
        textfont={"size": 12},
        increasing={"marker": rising},
        decreasing={"marker": falling},
        totals={"marker": {"color": BLUE}},
        connector={"line": {"color": GREY, "width": 1, "dash": "dot"}},
        hovertext=[*(markup.escape(id, quote=False) for id, _ in known), "end"],
        hovertemplate="%{hovertext}: %{text}<extra></extra>",
    )


def curves_figure(lines: Sequence[tuple[str, Stage, Mapping[str, Sequence[tuple[int, float]]]]]) -> go.Figure:
    """Loss over tokens, and over FLOPs, of trainings with their names. A training's FLOPs are shared out over its tokens."""
    panels = ("tokens", "training FLOPs")
    figure = make_subplots(1, 2, subplot_titles=[f"training loss over {panel}" for panel in panels], horizontal_spacing=0.08)
    for place, (name, stage, curves) in enumerate(lines):
        tokens, loss = dict(curves.get("tokens", ())), dict(curves["loss"])
        steps = [step for step in loss if step in tokens]
        each = stage.numbers.get("training_flops", 0.0) / (stage.numbers.get("training_tokens") or 1)
        for column, factor in ((1, 1.0), (2, each)):
            if factor:
                figure.add_trace(
                    go.Scatter(
                        x=[tokens[step] * factor for step in steps],
                        y=[loss[step] for step in steps],
                        name=label(name, 60),
                        legendgroup=name,
                        showlegend=column == 1,
                        mode="lines",
                        line={"color": PALETTE[place % 6], "dash": DASHES[place % 6], "width": 2},
                    ),
                    1,
                    column,
                )
    figure.update_xaxes(exponentformat="SI", rangemode="tozero")
    figure.update_yaxes(title="nats per token", col=1)
    figure = _layout(figure, 340)
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
    return figure


def heat_figure(maps: Sequence[tuple[str, Mapping[str, float]]], what: str) -> go.Figure:
    """A number of every matrix, model beside model on one scale: kinds of matrices down, decoder blocks across."""
    found = [(name, cells(shares)) for name, shares in maps]
    kinds = list(dict.fromkeys(kind for _, known in found for kind, _ in known))
    titles = [label(name, 120 // len(found)) for name, _ in found]
    figure = make_subplots(1, len(found), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.03)
    for column, (_, known) in enumerate(found, 1):
        blocks = sorted({block for _, block in known})
        grid = [[known.get((kind, block)) for block in blocks] for kind in kinds]
        hover = "block %{x}, %{y}: %{z:.4g}<extra></extra>"
        figure.add_trace(
            go.Heatmap(x=blocks, y=kinds, z=grid, coloraxis="coloraxis", hovertemplate=hover, xgap=1, ygap=1), 1, column
        )
    figure.update_xaxes(
        title="decoder block", dtick=1 if len({block for _, known in found for _, block in known}) <= 16 else None
    )
    figure.update_yaxes(autorange="reversed")
    figure = _layout(figure, 130 + 26 * max(len(kinds), 3))  # of one row too the scale has room for its numbers
    scale = {"tickformat": ".0%"} if what == "sparsity" else {"exponentformat": "power"}
    sound = (value for _, known in found for value in known.values() if math.isfinite(value))
    most = 1.0 if what == "sparsity" else max(sound, default=1.0)
    bar = {"title": what, "thickness": 12, "nticks": 3 if len(kinds) < 4 else 6, **scale}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": most, "colorbar": bar})
    return figure
