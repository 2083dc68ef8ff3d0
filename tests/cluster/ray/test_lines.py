"""What a stage prints is read back, whatever else stands in the log."""

from __future__ import annotations

import pytest

from cluster.ray.lines import MARK, format_line, parse_line

TOLD = {"event": "metrics", "step": 3, "metrics": {"loss": 2.5}, "note": "line\nbreak, Ünïcode and " + MARK.strip()}


def test_an_event_is_one_line_and_comes_back_as_it_was():
    assert "\n" not in format_line(TOLD) and parse_line(format_line(TOLD)) == TOLD


@pytest.mark.parametrize("before", ["(produce pid=12, ip=10.0.0.1) ", "\x1b[36m(task pid=3)\x1b[0m ", "2026-01-01 INFO "])
@pytest.mark.parametrize("after", ["", "\n", "\x1b[0m", " [repeated 2x across cluster]"])
def test_ray_may_write_around_it(before, after):
    assert parse_line(before + format_line(TOLD) + after) == TOLD


@pytest.mark.parametrize(
    "line",
    ["", "loss 2.5", '{"event": "metrics"}', MARK, MARK + '{"event": "met', MARK + "[1, 2]", MARK + "7", MARK.strip()],
)
def test_other_lines_and_broken_ones_are_no_events(line):
    assert parse_line(line) is None
