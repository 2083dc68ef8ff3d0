"""One signal ends a run; those after it are answered by a line, and do not land in the middle of what it has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from flows import export
from flows.ending import Terminated, ends_once
from flows.launch import launch

RUN = """
import sys, time
from flows.ending import ends_once
with ends_once(calmly=True):
    try:
        print("running", flush=True)
        time.sleep(60)
    except BaseException as ending:
        print(type(ending).__name__, flush=True)
        time.sleep(float(sys.argv[1]))
        print("ended", flush=True)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_a_second_signal_is_answered_and_the_ending_goes_on(number, name):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUN, "1"], **pipes) as run:
        assert run.stdout.readline() == "running\n"
        run.send_signal(number)
        assert run.stdout.readline() == f"{name}\n"
        run.send_signal(number)
        out, err = run.communicate(timeout=20)
    assert (out, err.strip(), run.returncode) == ("ended\n", "winnow: stopping, which takes some seconds", 0)


def test_who_insists_leaves_at_once():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUN, "60"], **pipes) as run:
        assert run.stdout.readline() == "running\n"
        run.send_signal(signal.SIGINT)
        assert run.stdout.readline() == "KeyboardInterrupt\n"
        for _ in range(2):
            run.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert run.wait(10) == 130


def test_signals_mean_afterwards_what_they_meant_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Terminated), ends_once(calmly=True):
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_pipe_that_breaks_inside_is_told_and_one_that_nobody_reads_is_not():
    """typer ends without a word at any broken pipe, which is right of winnow's own output alone."""
    inside = "import os; ends = os.pipe(); os.close(ends[0]); os.write(ends[1], b'x')"
    own = "import os; os.write(1, b'x')"
    table = "from flows.options import console; console.print('x')"  # rich closes the pipe before it ends the process

    def told(work: str) -> tuple[int, str]:
        script = f"from flows import cli\n@cli.app.command()\ndef broken(): {work}\ncli.main()"
        process = subprocess.Popen(
            [sys.executable, "-c", script, "broken"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if work is not inside:
            process.stdout.close()
        return process.wait(60), process.stderr.read()

    code, error = told(inside)
    assert code == 1 and error.strip().endswith("BrokenPipeError: [Errno 32] Broken pipe")
    assert told(own) == (1, "")
    assert told(table) == (1, "")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE should be a whole number, as torchrun sets it, got 'two'; unset it"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK should be a whole number, as torchrun sets it, got '-1'; unset it"),
        ({"RANK": "1"}, "RANK 1 should be below WORLD_SIZE 1; start winnow by torchrun, or unset both"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2 should be below WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and RANK is not set; start winnow by torchrun, or unset WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2 and MASTER_ADDR is not set"),
    ],
)
def test_what_another_program_left_of_torchruns_variables_is_refused(given, expected, monkeypatch):
    """A rank above 0 helps others and makes nothing: alone it ended with 0, and nothing was there."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as refused:
        launch("quickstart", "local", Console(quiet=True), quiet=True, here=True)
    assert expected in str(refused.value)


WRITING = """
import os, sys, time
from pathlib import Path
from flows import cli, export

@cli.app.command()
def write(directory: str):
    with export._whole(Path(directory)) as scratch:
        (scratch / "part").touch()
        time.sleep(60)

cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_ended_takes_away_what_is_half_done(number, tmp_path):
    """SIGTERM and a terminal that closed left half an export."""
    command = [sys.executable, "-c", WRITING, "write", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    ) as process:
        while not (tmp_path / "out" / export.HALF / "part").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_ends_a_run_calmly_and_nohup_keeps_it_going(tmp_path):
    own, other = os.openpty()
    script = RUN.replace('print("ended", flush=True)', f'print("told", flush=True); open({str(tmp_path / "ended")!r}, "w")')
    run = subprocess.Popen([sys.executable, "-c", script, "0"], stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    assert os.read(own, 100).strip() == b"running"
    os.close(own)  # writing there fails from now on
    run.send_signal(signal.SIGHUP)
    assert run.wait(20) == 0 and (tmp_path / "ended").exists()
    pipes = {"stdout": subprocess.PIPE, "text": True}
    ignores = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with subprocess.Popen([sys.executable, "-c", ignores + RUN, "0"], **pipes) as kept:
        assert kept.stdout.readline() == "running\n"
        kept.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert kept.poll() is None
        kept.kill()
