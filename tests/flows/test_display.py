"""Bars give way: to a log file, to a tracing debugger, and to ``breakpoint()`` inside a stage that runs here."""

import io
import sys

from rich.console import Console

from cluster.ray.events import Progress
from cluster.store.local import LocalStore
from flows.display import Display, models_table
from tests.flows.recipes import plan


def on_terminal() -> Display:
    return Display(Console(file=io.StringIO(), force_terminal=True))


def test_a_breakpoint_ends_the_bars_before_its_prompt(monkeypatch):
    before = sys.breakpointhook
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")  # a prompt that asks nothing
    display = on_terminal()
    with display.live():
        assert display.progress.live.is_started
        breakpoint()  # noqa: T100
        assert not display.progress.live.is_started
    assert sys.breakpointhook is before


def test_there_are_no_bars_in_a_file_under_a_tracer_and_where_nothing_is_shown(monkeypatch):
    assert on_terminal().animated and not Display(Console(file=io.StringIO())).animated
    assert not Display(Console(file=io.StringIO(), force_terminal=True), quiet=True).animated
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    assert not on_terminal().animated


def test_in_a_file_a_line_tells_what_takes_long_and_nothing_of_what_does_not(tmp_path, monkeypatch):
    step, now = plan(LocalStore(tmp_path / "store")).by_id["prepare"], [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    display = Display(Console(file=io.StringIO()))
    display.started(step)
    display.event(step, Progress(1, 0, "documents"))
    now[0] += 20
    display.event(step, Progress(900, 0, "documents"))
    assert display.console.file.getvalue().split("\n")[:2] == ["prepare: starting", "prepare: 900 documents"]


def test_a_table_of_a_sweep_is_whole_at_any_width():
    """Rich cuts off on the right what does not fit, units first."""
    numbers = {"perplexity": 222.96, "bytes": 727_130.0, "parameters": 180_000.0, "training_tokens": 16_384.0}
    numbers |= {"training_flops": 1.93e10, "seconds": 3.9, "peak_memory_bytes": 744.05e6, "live_parameters": 180_000.0}
    models = [
        {"stage": f"recover-foretold{row}", "address": f"recover/x-{row}"}
        | {name: value * (1 + row) for name, value in numbers.items()}
        for row in range(8)
    ]
    for width in range(50, 170):
        console = Console(file=io.StringIO(), width=width)
        console.print(models_table(models, 209.3, width))
        lines = [line.rstrip() for line in console.file.getvalue().splitlines() if line[0] in "┏┃┡│└"]
        assert {line[-1] for line in lines} <= set("┓┃┩│┘") and len({len(line) for line in lines}) == 1, width
