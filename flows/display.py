"""What a person sees while a recipe runs: a bar per running stage with rate and time left, and one table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

LINE_SECONDS = 15.0


class Display:
    """Bars on a terminal, a line now and then elsewhere (a log file, CI). ``quiet`` shows nothing: for ``--json``."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet
        self.bars: dict[str, TaskID] = {}
        self.lines: dict[str, float] = {}
        self.rates: dict[str, tuple[float, int]] = {}
        self.progress = Progress(
            TextColumn("{task.description:<20}"), BarColumn(24), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"), console=console,
        )

    @contextmanager
    def live(self):
        if self.quiet or not self.console.is_terminal:
            yield self
        else:
            with self.progress:
                yield self

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False)

    def started(self, id: str) -> None:
        if self.console.is_terminal:
            self.bars[id] = self.progress.add_task(id, total=None, rate="", note="starting")
        else:
            self.say(f"{id}: starting")

    def advanced(self, id: str, event: Mapping[str, Any]) -> None:
        """A progress event of a stage: {done, total, unit, note, timestamp}."""
        rate = self._rate(id, event)
        if id in self.bars:
            note = event["note"] or event["unit"]
            self.progress.update(
                self.bars[id], completed=event["done"], total=event["total"] or None, rate=rate, note=note
            )
        elif time.monotonic() - self.lines.get(id, 0.0) > LINE_SECONDS:
            self.lines[id] = time.monotonic()
            share = f"{100 * event['done'] / event['total']:.0f}% " if event["total"] else ""
            self.say(f"{id}: {share}{event['done']:,} {event['unit']} {rate} {event['note']}".rstrip())

    def finished(self, id: str, text: str) -> None:
        if id in self.bars:
            self.progress.remove_task(self.bars.pop(id))
        self.say(f"{id}: {text}")

    def _rate(self, id: str, event: Mapping[str, Any]) -> str:
        """Units per second since the stage's first event, by the stage's own clock."""
        start, done = self.rates.setdefault(id, (event["timestamp"], event["done"]))
        seconds = (event["timestamp"] - start) / 1000
        return f"{(event['done'] - done) / seconds:,.0f} {event['unit']}/s" if seconds > 1 else ""


COLUMNS = (
    ("perplexity", "perplexity", "{:.2f}"),
    ("task_accuracy", "task acc.", "{:.1%}"),
    ("sparsity", "sparsity", "{:.1%}"),
    ("pattern_holds", "pattern kept", "{:.0%}"),
    ("bytes", "size", "bytes"),
    ("live_parameters", "live params", "count"),
    ("training_flops", "train FLOPs", "{:.2e}"),
    ("prefill_tokens_per_second", "prefill tok/s", "{:,.0f}"),
    ("decode_tokens_per_second", "decode tok/s", "{:,.0f}"),
    ("seconds", "seconds", "{:.0f}"),
)


def models_table(models: Iterable[Mapping[str, Any]], unigram: float | None) -> Table:
    """One row a model: what its stage did to quality, size and speed."""
    caption = f"a unigram model scores perplexity {unigram:.1f}" if unigram else None
    table = Table(title="models", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("stage", no_wrap=True)
    table.add_column("address", no_wrap=True, overflow="fold")
    for _, title, _ in COLUMNS:
        table.add_column(title, justify="right")
    for model in models:
        table.add_row(model["stage"], model["address"], *(_cell(model.get(name), form) for name, _, form in COLUMNS))
    return table


def _cell(value: float | None, form: str) -> str:
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
