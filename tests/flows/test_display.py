"""Bars give way: to a log file, to a tracing debugger, and to ``breakpoint()`` inside a stage that runs here."""

import io
import sys

from rich.console import Console

from flows.display import Display


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
