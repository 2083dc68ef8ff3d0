"""A stage's peak is its own, whatever its process held before, and whether or not the kernel forgets."""

import time

import numpy as np
import pytest

from tasks.models import memory
from tasks.models.memory import Peak

MEBIBYTE = 1 << 20


def hold(mebibytes):
    held = np.ones(mebibytes * MEBIBYTE, dtype=np.uint8)
    time.sleep(0.1)  # a hundred looks, on a machine that has other work too
    return held


@pytest.fixture(params=["the kernel forgets", "it may not be told to"])
def kernel(request, monkeypatch):
    if request.param != "the kernel forgets":
        monkeypatch.setattr(memory, "_begin_anew", lambda: False)
        monkeypatch.setattr(memory, "EVERY", 0.001)


def test_what_was_held_before_is_not_counted_and_what_is_held_is(kernel):
    hold(96)
    with Peak("cpu") as idle:
        pass
    with Peak("cpu") as busy:
        hold(64)
    with Peak("cpu") as again:
        pass
    assert 48 * MEBIBYTE < busy.bytes - idle.bytes < 88 * MEBIBYTE
    assert abs(again.bytes - idle.bytes) < 32 * MEBIBYTE


def test_a_kernel_that_cannot_be_told_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "no" / "such")
    assert not memory._begin_anew()
