"""An MLflow that goes while a run computes costs the run nothing: it hears of all in order when it is back."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from cluster.store.artifacts import CorruptArtifact
from flows import held as module
from flows.held import Held


class Chronicle:
    """Writes to a server that may be away; one of its own would take seconds to start."""

    def __init__(self) -> None:
        self.away, self.told = False, []

    def _tell(self, *what) -> None:
        if self.away:
            raise ConnectionError("MLflow at x: gone")
        self.told.append(what)

    def started(self, step):
        self._tell("started", step)

    def event(self, step, event):
        self._tell("event", step, event)

    def finished(self, step, record, overhead):
        self._tell("finished", step)

    def close(self, summary, status):
        self._tell("close", status)


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_) -> None: ...


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()


@pytest.fixture
def chronicle(monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 0.0)
    module.warn.cache_clear()
    return Chronicle()


def test_what_could_not_be_told_is_told_in_order_when_it_answers_again(chronicle, server, capsys):
    held = Held(chronicle, server)
    held.started("a")
    chronicle.away = True
    held.event("a", 1)
    held.event("a", 2)
    held.finished("a", SimpleNamespace(), 0.0)
    chronicle.away = False
    held.started("b")
    held.close({}, "FINISHED")
    assert chronicle.told == [
        ("started", "a"),
        ("event", "a", 1),
        ("event", "a", 2),
        ("finished", "a"),
        ("started", "b"),
        ("close", "FINISHED"),
    ]
    first, last = capsys.readouterr().err.splitlines()
    assert "MLflow at x: gone; the run goes on" in first and last.endswith("answers again, and knows all")


def test_an_end_waits_a_little_and_says_what_is_missing(chronicle, monkeypatch, capsys):
    monkeypatch.setattr(module, "LAST_WAIT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    chronicle.away = True
    held = Held(chronicle, uri)
    held.close({}, "FINISHED")
    assert chronicle.told == [] and len(held.kept) == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("waiting for MLflow at" in line for line in lines)
    assert lines[-1].endswith("the same command tells it from what is made, and makes nothing again")


def test_one_that_hangs_is_told_of_while_it_does_and_then_seldom_waited_for(chronicle, monkeypatch, capsys):
    monkeypatch.setattr(module, "SAID", 0.2)
    said_by_then = []
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes connections, and answers nothing
        uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"

        def ask(*what) -> None:
            with pytest.raises(TimeoutError):
                urllib.request.urlopen(uri, timeout=1.0)
            said_by_then.append(capsys.readouterr().err)
            raise ConnectionError("MLflow at x: timed out")

        monkeypatch.setattr(chronicle, "_tell", ask)
        held, begun = Held(chronicle, uri), time.monotonic()
        for number in range(50):
            held.event("a", number)
        assert time.monotonic() - begun < 2.0 and len(held.kept) == 50
    (said,) = said_by_then
    assert said == f"winnow: MLflow at {uri} does not answer; the run waits for it, and goes on without it if it stays silent\n"
    assert capsys.readouterr().err == "winnow: MLflow at x: timed out; the run goes on, and what it has to tell is kept\n"


def test_what_fails_for_another_reason_is_raised_once_and_what_follows_is_told(chronicle, server, monkeypatch):
    held, damaged = Held(chronicle, server), CorruptArtifact("prune/wanda-0", "it was damaged")
    monkeypatch.setattr(chronicle, "finished", lambda *_: (_ for _ in ()).throw(damaged))
    with pytest.raises(CorruptArtifact):
        held.finished("a", SimpleNamespace(), 0.0)
    held.close({}, "FAILED")
    assert chronicle.told == [("close", "FAILED")]
