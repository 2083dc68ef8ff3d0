"""Who waits for long is told what for; the lock falls with its holder."""

from __future__ import annotations

import subprocess
import sys
import threading

from cluster import lock
from cluster.lock import locked, locked_now

HOLDER = """
import sys
from pathlib import Path
from cluster.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_long_wait_is_told_once_and_ends_with_the_holder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "l"], **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with locked_now(tmp_path / "l") as mine:
            assert not mine
        threading.Timer(1.0, holder.kill).start()
        with locked(tmp_path / "l", "the other run"):
            (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("winnow: waiting for the other run, since ")
    with locked_now(tmp_path / "l") as mine:
        assert mine
