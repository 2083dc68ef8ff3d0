"""Figures of runs: curves over tokens, sparsity by layer, quality against bytes, and what a scaling law makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dashboards.layers import cells

ACCENT, SECOND, GRID = "#2f6f8f", "#c8553d", "#dddddd"


def _axes(width: float = 6.4, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def training_curves(history: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Loss over tokens, and the sparsity the model had meanwhile. ``history`` rows hold loss, tokens and maybe sparsity."""
    figure, axes = _axes()
    tokens = [row["tokens"] / 1e6 for row in history]
    axes.plot(tokens, [row["loss"] for row in history], color=ACCENT, linewidth=1.2)
    axes.set(xlabel="tokens (millions)", title=title)
    axes.set_ylabel("loss (nats per token)", color=ACCENT)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    if any("sparsity" in row for row in history):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.plot(tokens, [100 * row.get("sparsity", 0.0) for row in history], color=SECOND, linewidth=1.2)
        right.set_ylim(0, 100)
        right.set_ylabel("sparsity (%)", color=SECOND)
    return figure


def groups_figure(groups: Mapping[str, Sequence[float]], metric: str) -> Figure:
    """A row a group: a dot a seed, a bar and its value at the mean. Values that lie far apart are told on a log scale."""
    figure, axes = _axes(6.4, 0.9 + 0.32 * len(groups))
    every = [value for values in groups.values() for value in values]
    if every and max(every) > 3 * min(every) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if max(every) < 10 * min(every) else NullFormatter())
    for row, values in enumerate(reversed(list(groups.values()))):
        mean = sum(values) / len(values)
        axes.plot(values, [row] * len(values), "o", color=ACCENT, markersize=4, alpha=0.7)
        axes.plot([mean], [row], "|", color=SECOND, markersize=14, markeredgewidth=2)
        axes.annotate(f"{mean:.4g}", (max(values), row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(groups)), list(groups)[::-1], fontsize=8)
    axes.set_xlabel(metric)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_ylim(-0.7, len(groups) - 0.3)
    axes.margins(x=0.12)
    return figure


def heat_map(shares: Mapping[str, float], title: str) -> Figure:
    """A share of every matrix, by its name. Rows are the kinds of matrices, columns the decoder blocks; numbers in the cells
    are percent."""
    known = cells(shares)
    kinds = list(dict.fromkeys(kind for kind, _ in known))
    blocks = sorted({block for _, block in known})
    figure, axes = _axes(2.2 + 0.55 * max(4, len(blocks)), 1.2 + 0.35 * max(2, len(kinds)))
    grid = [[known.get((kind, block), float("nan")) for block in blocks] for kind in kinds]
    axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for row, kind in enumerate(kinds):
        for column, block in enumerate(blocks):
            if len(blocks) <= 32 and (kind, block) in known:
                value = known[kind, block]
                color = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.set_xticks(range(len(blocks)), blocks, fontsize=8)
    axes.set(xlabel="decoder block", title=title)
    return figure


MOST_NAMES = 8


def quality_against_bytes(models: Iterable[Mapping[str, Any]]) -> Figure:
    """Held-out perplexity against weight bytes: down and to the left is better. A chain of stages is drawn as a path; of
    more models than can be named, the line and the names are of those that no other beats in both."""
    figure, axes = _axes()
    rows = [model for model in models if "perplexity" in model and "bytes" in model]
    named = rows if len(rows) <= MOST_NAMES else _front(rows)
    axes.plot(*_places(rows), "o", color=ACCENT, markersize=5)
    axes.plot(*_places(named), "-", color=ACCENT, linewidth=0.8)
    for row, *place in zip(named, *_places(named), strict=True):
        axes.annotate(row["stage"], place, xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="weights on disk (MB)", ylabel="held-out perplexity", title="quality against size")
    axes.grid(color=GRID, linewidth=0.6)
    axes.margins(x=0.15, y=0.15)
    return figure


def _places(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["bytes"] / 1e6 for row in rows], [row["perplexity"] for row in rows]


def _front(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The models that are better than every smaller or equal one, the smallest first."""
    front: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["perplexity"])):
        if not front or row["perplexity"] < front[-1]["perplexity"]:
            front.append(row)
    return front


def fit_errors(losses: Sequence[float], errors: Mapping[str, Sequence[float]]) -> Figure:
    """How far a law is off at each run, by what N stood for in it. ``errors`` are relative; losses are what was measured."""
    figure, axes = _axes()
    axes.axhline(0, color=GRID, linewidth=1.0)
    for (name, values), color, marker in zip(errors.items(), (ACCENT, SECOND, "#888888"), "o^s", strict=True):
        axes.plot(losses, [100 * value for value in values], marker, color=color, markersize=4, label=name)
    axes.set(xlabel="held-out loss (nats per token)", ylabel="error of the fit (%)", title="which N explains the losses")
    axes.legend(frameon=False)
    return figure


def loss_over_sparsity(
    sparsities: Sequence[float],
    losses: Sequence[float],
    band: tuple[Sequence[float], Sequence[float]],
    chosen: tuple[float, float],
) -> Figure:
    """Predicted loss at one budget and final size, with its band and the sparsity that was chosen."""
    figure, axes = _axes()
    percent = [100 * sparsity for sparsity in sparsities]
    axes.fill_between(percent, *band, color=ACCENT, alpha=0.2, linewidth=0, label="90 % band")
    axes.plot(percent, losses, color=ACCENT, linewidth=1.2)
    axes.plot(100 * chosen[0], chosen[1], "o", color=SECOND, label=f"{chosen[0]:.1%}")
    axes.set(xlabel="sparsity (%)", ylabel="predicted loss (nats per token)", title="one budget, one final size")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.legend(frameon=False)
    return figure
