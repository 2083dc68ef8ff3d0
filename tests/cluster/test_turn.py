"""Runs that want the same cluster go in the order they came, and one that was killed holds nobody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster.profile import CHECKOUT, Profile
from cluster.turn import Queue

HOLDER = """
import sys, time
from pathlib import Path
from cluster.turn import Queue
with Queue(Path(sys.argv[1])).turn("killed", 1, print):
    print("has it", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "queue")


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_came_first_goes_first_and_each_is_told_for_whom_it_waits(queue):
    went, told, gate = [], [], threading.Event()

    def run(name: str) -> None:
        with queue.turn(name, 1, lambda text: told.append((name, text))) as waited:
            went.append((name, waited))
            gate.wait(30)

    with ThreadPoolExecutor(3) as pool:
        for count, name in enumerate("abc"):
            pool.submit(run, name)
            wait_for(lambda count=count: len(queue.tickets()) == count + 1)
        wait_for(lambda: len(told) == 2)
        gate.set()
    assert went == [("a", False), ("b", True), ("c", True)] and queue.tickets() == []
    (b, first), (c, second) = told[:2]
    assert first.startswith("waiting for a (since ") and first.endswith("1 ahead") and (b, c) == ("b", "c")
    assert second.startswith("waiting for a (since ") and second.endswith("2 ahead")


def test_as_many_go_at_once_as_the_profile_says(queue):
    def another() -> tuple[bool, list[str]]:
        with queue.turn("b", 2, print) as waited:
            return waited, [ticket.name for ticket in queue.tickets()]

    with ThreadPoolExecutor(1) as pool, queue.turn("a", 2, print) as waited:
        assert not waited and pool.submit(another).result(30) == (False, ["a", "b"])


def test_a_place_drawn_early_is_the_one_that_gets_its_turn(queue):
    with queue.place("early") as place, queue.turn("early", 1, print) as waited:
        assert not waited and queue.tickets() == [place]
    assert queue.tickets() == []


@pytest.mark.slow
def test_a_holder_that_was_killed_is_no_longer_ahead(queue):
    command = [sys.executable, "-c", HOLDER, str(queue.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as holder:
        assert holder.stdout.readline() == "has it\n"
        assert [ticket.name for ticket in queue.tickets()] == ["killed"]
        os.kill(holder.pid, signal.SIGKILL)
    with queue.turn("next", 1, print) as waited:
        assert not waited and [ticket.name for ticket in queue.tickets()] == ["next"]


def test_a_run_that_fails_gives_its_turn_back(queue):
    with pytest.raises(ValueError), queue.turn("a", 1, print):
        raise ValueError
    assert queue.tickets() == []


def test_another_cluster_has_a_queue_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    own, other = Queue.of(Profile()), Queue.of(Profile(ray={"address": "http://head:8265"}))
    with own.turn("a", 1, print), other.turn("b", 1, print) as waited:
        assert not waited
