"""Events keep their stored form: the curves of artifacts that were made before are read, and written, byte for byte."""

from __future__ import annotations

import json

import pytest

from cluster.ray.events import Failed, Metrics, Note, Progress, Published, format_event, from_json, parse_event, to_json
from tasks.history import read_history

STORED = (
    '{"event": "metrics", "step": 10, "metrics": {"loss": 5.1, "sparsity": 0, "tokens": 5120, "kl": NaN}, '
    '"address": "pretrain/gradual-0123456789ab", "timestamp": 1790000000000}\n'
    '{"event": "metrics", "step": 20, "metrics": {"loss": 4.9, "tokens": 1000000.0}, '
    '"address": "pretrain/gradual-0123456789ab", "timestamp": 1790000001000}\n'
)


def test_a_stored_history_is_read_and_comes_back_byte_for_byte():
    curves = read_history(STORED)
    assert [(point.step, point.metrics["loss"]) for point in curves] == [(10, 5.1), (20, 4.9)]
    assert curves[0].address == "pretrain/gradual-0123456789ab" and curves[0].timestamp == 1790000000000
    assert "".join(json.dumps(to_json(point)) + "\n" for point in curves) == STORED


@pytest.mark.parametrize(
    "event",
    [
        Metrics(3, {"loss": 2.5}, address="a/b", timestamp=7),
        Progress(1, 0, "blocks", "calibrating"),
        Note("two\nlines"),
        Published({"sparsity": 0.5}, 1.5, address="a/b", timestamp=7),
        Failed("ValueError: no", final=True, aside="c/d"),
    ],
)
def test_every_kind_of_event_comes_back_as_it_was(event):
    assert parse_event(f"(task pid=7) {format_event(event)}\n") == event


@pytest.mark.parametrize(
    "told", [{}, {"event": "other"}, {"event": "note"}, {"event": "note", "text": "", "more": 1}, {"event": []}]
)
def test_what_is_no_event_is_none(told):
    assert from_json(told) is None
