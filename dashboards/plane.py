"""The plane of quality and cost, as plotly draws it.

Written as plain data: for a thousand points plotly's own objects take longer than all else that a filter asks of the server.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dashboards.charts import AXIS, BLUE, GREY, LAYOUT, ORANGE, VERMILLION, label
from dashboards.numbers import better, metric, title
from dashboards.pareto import Point, spread_out

SYMBOLS = {"pretrain": "circle", "load": "circle", "prune": "square", "recover": "diamond", "quantize": "triangle-up"}
OTHER_SYMBOL = "hexagon"
MOST_NAMES, MOST_SVG = 9, 1500
HEIGHT, MARGIN = 460, {"l": 76, "r": 24, "t": 36, "b": 58}  # room for any tick: measuring them would draw all twice
LOG_TICKS = {"type": "log", "minor": {"ticks": "outside"}, "dtick": "D2"}
Data = dict[str, Any]


def pareto_figure(
    found: Sequence[Point],
    front: Sequence[Point],
    axes: tuple[str, str],
    hovers: Mapping[str, str],
    names: Mapping[str, str],
    picked: Sequence[str] = (),
    limit: tuple[float, str] | None = None,
    view: str = "",
) -> Data:
    """Quality over cost. The front is a line with names; what something beats is grey. ``hovers`` and ``names`` go by the id of
    a model's run; ``limit`` is a quality that is good enough, and what it is called."""
    best = {point.model.run for point in front}
    beaten = [point for point in found if point.model.run not in best]
    dots = _dots(beaten, hovers, "beaten by another", GREY, 8, picked)
    kind = "scattergl" if len(beaten) > MOST_SVG else "scatter"
    data = [{**dots, "type": kind, "opacity": 0.55, "mode": "markers"}, _line(found, front, hovers, names, picked)]
    layout: Data = {
        **LAYOUT,
        "margin": MARGIN,
        "height": HEIGHT,
        "uirevision": view,
        "hovermode": "closest",
        "clickmode": "event",
    }
    layout["xaxis"], layout["yaxis"] = (
        _axis([point.x for point in found], axes[0]),
        _axis([point.y for point in found], axes[1]),
    )
    if limit and found:
        layout |= _limit(*limit, layout["yaxis"].get("type") == "log")
    return {"data": data, "layout": layout}


def _line(
    found: Sequence[Point],
    front: Sequence[Point],
    hovers: Mapping[str, str],
    names: Mapping[str, str],
    picked: Sequence[str],
) -> Data:
    text = [label(names[point.model.run], 40) if len(front) <= MOST_NAMES else "" for point in front]
    middle = (min(point.x for point in found) + max(point.x for point in found)) / 2 if found else 0.0
    # To the inside, or the frame would cut them off; on the side of the next point, or the line would go through them.
    beyond = "bottom" if len(front) > 1 and front[-1].y < front[0].y else "top"
    sides = ["top right" if point.x <= middle else f"{beyond} left" for point in front]
    mode = "+".join(["markers", *(["lines"] if len(front) > 1 else []), *(["text"] if any(text) else [])])
    line = {"color": BLUE, "width": 1.5, "shape": "hv"}
    dots = _dots(front, hovers, "beaten by none", BLUE, 12, picked)
    return {**dots, "type": "scatter", "mode": mode, "line": line, "text": text, "textposition": sides}


def _dots(found: Sequence[Point], hovers: Mapping[str, str], name: str, color: str, size: int, picked: Sequence[str]) -> Data:
    symbols = [SYMBOLS.get(point.model.kind, OTHER_SYMBOL) for point in found]
    widths = [3 if point.model.run in picked else 0 for point in found]
    return {
        "x": np.array([point.x for point in found], float),
        "y": np.array([point.y for point in found], float),
        "name": name,
        "customdata": [point.model.run for point in found],
        "hovertext": [hovers.get(point.model.run, "") for point in found],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {
            "color": color,
            "size": size,
            "symbol": symbols if len({*symbols}) > 1 else "".join(symbols[:1]),
            "line": {"color": VERMILLION, "width": widths if any(widths) else 0},
        },
    }


def _axis(values: Sequence[float], name: str) -> Data:
    axis = {
        **AXIS,
        "automargin": False,
        "title": {"text": f"{title(name)}{_direction(name)}", "standoff": 12},
        **(LOG_TICKS if spread_out(values) else {}),
    }
    if metric(name).unit == "share":
        return {**axis, "tickformat": ".0%"}
    return {**axis, "exponentformat": "SI", "ticksuffix": "B" if metric(name).unit == "B" else ""}


def _direction(name: str) -> str:
    return {1: " (more is better)", -1: " (less is better)", 0: ""}[better(name)]


def _limit(value: float, name: str, logarithmic: bool) -> Data:
    """A line across, with its name above its end. On a log axis plotly wants the exponent of a text's place, but not of a
    line's."""
    line = {"type": "line", "xref": "x domain", "x0": 0, "x1": 1, "y0": value, "y1": value}
    place = {"xref": "x domain", "x": 1, "xanchor": "right", "y": math.log10(value) if logarithmic else value}
    text = {"text": name, "showarrow": False, "yanchor": "bottom", "font": {"size": 12}, **place}
    return {"shapes": [{**line, "line": {"color": ORANGE, "dash": "dash", "width": 1.5}}], "annotations": [text]}
