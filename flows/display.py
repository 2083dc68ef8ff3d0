"""What a person sees while a recipe runs: a bar per running stage with rate and time left, and one table at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cluster.ray import events
from cluster.store.artifacts import Record
from dashboards.numbers import deviation
from flows.conductor import Watcher, without
from flows.gates import UNKNOWN, by_gate, coloured, verdict
from flows.plan import Step

LINE_SECONDS = 15.0


class Display(Watcher):
    """Bars on a terminal, a line now and then elsewhere: in a log file, in CI, and under a debugger, whose prompt they would
    paint over. ``quiet`` shows nothing: for ``--json``."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.animated = console.is_terminal and not quiet and sys.gettrace() is None
        self.bars: dict[str, TaskID] = {}
        self.lines: dict[str, float] = {}
        self.rates: dict[str, tuple[float, int]] = {}
        self.progress = Progress(
            TextColumn("{task.description:<20}"),
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )

    @contextmanager
    def live(self):
        if not self.animated:
            yield self
            return
        hook, sys.breakpointhook = sys.breakpointhook, self._breakpoint
        try:
            with self.progress:
                yield self
        finally:
            sys.breakpointhook = hook

    def _breakpoint(self, *args: Any, **kwargs: Any) -> None:
        """``breakpoint()`` in a stage that runs here: no bars from then on, and the prompt in the stage's own frame."""
        self.progress.stop()
        if "PYTHONBREAKPOINT" in os.environ:
            sys.__breakpointhook__(*args, **kwargs)
        else:
            import pdb

            pdb.Pdb().set_trace(sys._getframe(1))

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False)

    def started(self, step: Step) -> None:
        if step.cached:
            return
        if self.animated:
            self.bars[step.id] = self.progress.add_task(step.id, total=None, rate="", note="starting")
            return
        self.lines[step.id] = time.monotonic()  # what is done within that time needs no line
        if not step.node.measures:
            self.say(f"{step.id}: starting")

    def event(self, step: Step, event: events.Event) -> None:
        """Progress moves the stage's bar; a note is a line of its own."""
        if isinstance(event, events.Note):
            self.say(f"{step.id}: {event.text}")
        if not isinstance(event, events.Progress):
            return
        id, (rate, left) = step.id, self._speed(step.id, event)
        if id in self.bars:
            note = event.note or event.unit
            self.progress.update(self.bars[id], completed=event.done, total=event.total or None, rate=rate, note=note)
        elif time.monotonic() - self.lines.get(id, 0.0) > LINE_SECONDS:
            self.lines[id] = time.monotonic()
            share = f"{100 * event.done / event.total:.0f}% " if event.total else ""
            told = filter(None, (f"{share}{event.done:,} {event.unit}", rate, left, event.note))
            self.say(f"{id}: {', '.join(told)}")

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        if step.id in self.bars:
            self.progress.remove_task(self.bars.pop(step.id))
        if step.cached and step.node.measures:
            return
        told = "cached" if step.cached else f"done in {record.seconds:.1f} s (+ {overhead:.1f} s around it)"
        self.say(f"{step.id}: {told}  {record.address}")

    def failed(self, step: Step, error: Exception) -> None:
        if step.id in self.bars:
            self.progress.remove_task(self.bars.pop(step.id))
        self.say(f"{step.id}: {without(step, error)}")

    def _speed(self, id: str, event: events.Progress) -> tuple[str, str]:
        """Rate and rest since the stage's first event that counts any, by the stage's own clock."""
        if not event.total and not event.done:
            return "", ""
        return event.speed(*self.rates.setdefault(id, (event.timestamp, event.done)))


ROWS = (
    ("perplexity", "perplexity", "{:.2f}"),
    ("task_accuracy", "task accuracy", "{:.1%}"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("flips", "flipped answers", "{:.1%}"),
    ("reference_kl", "KL to reference", "{:.3g}"),
    ("reference_flips", "flipped tokens", "{:.1%}"),
    ("sparsity", "sparsity", "{:.1%}"),
    ("pattern_holds", "pattern kept", "{:.0%}"),
    ("target_reached", "target reached", "{:.0%}"),
    ("unseen_matrices", "unseen matrices", "{:,.0f}"),
    ("bytes", "size", "bytes"),
    ("bits_per_parameter", "bits a parameter", "{:.2f}"),
    ("parameters", "parameters", "count"),
    ("live_parameters", "live parameters", "count"),
    ("trainable_parameters", "trained parameters", "count"),
    ("training_tokens", "training tokens", "count"),
    ("training_flops", "training FLOPs", "{:.2e}"),
    ("prefill_tokens_per_second", "prefill tok/s", "{:,.0f}"),
    ("decode_tokens_per_second", "decode tok/s", "{:,.0f}"),
    ("seconds", "stage seconds", "{:.1f}"),
    ("peak_memory_bytes", "peak memory", "bytes"),
)


MOST_COLUMNS = 6


def models_table(models: Sequence[Mapping[str, Any]], unigram: float | None, width: int) -> Table:
    """What each stage did to quality, size and speed: a column a model, so that a chain of stages fits a terminal; a row
    a model where a sweep made many. ``width`` is that of the terminal in characters."""
    caption = f"a unigram model scores perplexity {unigram:.1f}" if unigram else ""
    if len(models) > MOST_COLUMNS:
        return _sweep_table(models, caption, width)
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for model in models:
        label, _, key = model["address"].partition("/")[2].rpartition("-")
        table.add_column(f"{model['stage']}\n[dim]{label}\n{key}[/dim]", justify="right", overflow="fold")
    for name, title, form in ROWS:
        cells = [cell(model.get(name), form) for model in models]
        if any(cells):
            table.add_row(title, *cells)
    for gate, words in by_gate(models):
        table.add_row(f"[dim]require[/dim] {gate}", *map(coloured, words))
    return table


def _sweep_table(models: Sequence[Mapping[str, Any]], caption: str, width: int) -> Table:
    """A row a model, and as many of the columns that tell models apart as fit; the others are named in the caption."""
    stages = [model["stage"] for model in models]
    room = width - max(map(len, stages)) - 4
    columns, alike, hidden = [stages], [], []
    shown: list[tuple[str, int, int]] = []  # titles, how wide each column has to be, and how much wider it would like to be
    table = Table(caption_justify="left")
    table.add_column("", no_wrap=True)
    if any("gates" in model for model in models):
        columns.append([coloured(verdict(model.get("gates", ()))) for model in models])
        table.add_column("require", no_wrap=True)
        room -= len(UNKNOWN) + 3
    for name, title, form in ROWS:
        cells = [cell(model.get(name), form) for model in models]
        told = set(filter(None, cells))
        needed = max(map(len, (*title.split(), *cells))) + 3
        if len(told) == 1 and sum(map(bool, cells)) > 1:
            alike.append(f"{title} {told.pop()}")
        elif told and needed <= room:
            room -= needed
            columns.append(cells)
            shown.append((title, needed - 3, max(0, len(title) + 3 - needed)))
        elif told:
            hidden.append(title)
    tight = sum(more for *_, more in shown) > room  # left to itself, rich takes from columns that have nothing to give
    for title, least, _ in shown:
        table.add_column(title, justify="right", width=least if tight else None)
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    lines = [
        caption,
        f"alike wherever measured: {', '.join(alike)}" if alike else "",
        f"left out for want of width, and in --json: {', '.join(hidden)}" if hidden else "",
    ]
    table.caption = "\n".join(filter(None, lines))
    return table


def claims_table(claims: Sequence[Mapping[str, Any]]) -> Table:
    """Claim, numbers (mean and standard deviation over seeds), verdict."""
    table = Table()
    for title in ("claim", "mean ± std over seeds", "verdict"):
        table.add_column(title, overflow="fold")
    for claim in claims:
        groups = [f"{name} {group['mean']:.4g}{deviation(group)}" for name, group in claim["groups"].items()]
        colour = "green" if claim["holds"] else "red" if claim["clear"] else "yellow"
        verdict = f"[{colour}]{claim['verdict']}[/{colour}]"
        table.add_row(f"{claim['says']} [dim]({claim['metric']})[/dim]", "\n".join(groups), verdict)
    return table


def cell(value: float | None, form: str) -> str:
    """A number for people; nothing where there is none."""
    if value is None:
        return ""
    if form == "bytes":
        return size(value)
    if form == "count":
        return f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,.0f}"
    return form.format(value)


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError
