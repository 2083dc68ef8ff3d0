"""What a person sees when a run does not end well: one line, an honest exit code, nothing left running, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator

import pytest

from tests.pipeline import Done, Home, Ledger, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LONG = 300


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "failures", checkpoint_every_seconds=0.5) as home:
        yield home


@pytest.fixture(scope="module")
def interrupted(home: Home) -> tuple[Done, float]:
    """A run stopped by Ctrl-C in mid-training, and when that was."""
    running = home.start("run", home.recipe("long", pretrain("dense", LONG)), "-p", home.profile, "--json")
    deadline = time.monotonic() + 200
    while len(list(home.directory.glob("scratch/pretrain/*/checkpoints/step-*/manifest.json"))) == 0:
        assert time.monotonic() < deadline and running.process.poll() is None, "no checkpoint was written"
        time.sleep(0.05)
    moment = time.time()
    os.killpg(running.process.pid, signal.SIGINT)  # what a terminal does
    return running.wait(60), moment


def test_an_interrupt_says_how_to_go_on_and_leaves_no_process(home: Home, interrupted: tuple[Done, float]) -> None:
    done, _ = interrupted
    assert (done.code, done.out) == (130, "")
    (line,) = done.err.splitlines()
    assert "run the same command to go on" in line
    assert len(done.seen) > 10 and done.survivors == [] and not (home.directory / "services.json").exists()
    assert not list(home.directory.glob("store/pretrain/*"))
    (parent,) = Ledger.of(home).parents("long")
    assert parent.info.status == "KILLED"


def test_a_termination_ends_it_the_same_way(home: Home, interrupted: tuple[Done, float]) -> None:
    running = home.start("run", home.recipe("long", pretrain("dense", LONG)), "-p", home.profile, "--json")
    deadline = time.monotonic() + 100
    ledger = Ledger.of(home)
    while not any("pretrain" in ledger.children(parent) for parent in ledger.parents("long")[1:]):
        assert time.monotonic() < deadline and running.process.poll() is None, "the run did not begin"
        time.sleep(0.05)
    running.process.terminate()
    done = running.wait(60)
    assert (done.code, done.out) == (143, "")
    assert done.err == "stopped. What was finished is kept; run the same command to go on.\n" and done.survivors == []
    assert [parent.info.status for parent in ledger.parents("long")] == ["KILLED", "KILLED"]


def test_the_same_command_goes_on_from_the_checkpoint(home: Home, interrupted: tuple[Done, float]) -> None:
    _, moment = interrupted
    done = home.run(home.recipe("long", pretrain("dense", LONG)))
    assert [stage["cached"] for stage in done.summary["stages"]] == [True, False]
    (history,) = home.directory.glob("store/pretrain/*/report/history.jsonl")
    events = [json.loads(line) for line in history.read_text().splitlines()]
    kept = [event["step"] for event in events if event["timestamp"] < 1000 * moment]
    print(f"\nthe interrupted run brought {max(kept)} of {LONG} steps")
    assert 0 < max(kept) < LONG and kept == [event["step"] for event in events][: len(kept)]
    assert done.survivors == []


@pytest.fixture(scope="module")
def failed(home: Home) -> Done:
    stage = pretrain("dense", LONG)
    stage["pretrain"]["learning_rate"] = 1e30
    return home.run(home.recipe("diverging", {"id": "diverging", **stage}), code=2)


def test_a_stage_whose_input_is_at_fault_fails_with_one_line(home: Home, failed: Done) -> None:
    assert failed.out == ""
    (line,) = failed.err.splitlines()
    assert line.startswith("winnow: diverging: FloatingPointError: the ")
    assert len(failed.seen) > 10 and failed.survivors == []


def test_a_damaged_artifact_fails_its_verification(home: Home, failed: Done) -> None:
    (sound,) = home.directory.glob("store/prepare/*")
    address = f"prepare/{sound.name}"
    home.winnow("verify", address, "-p", home.profile)
    tokens = sound / "heldout-00000.npy"
    content = tokens.read_bytes()
    try:
        tokens.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = home.winnow("verify", address, "-p", home.profile, code=1)
    finally:
        tokens.write_bytes(content)
    problem, remedy = done.err.splitlines()
    assert problem.startswith(f"{address}: heldout-00000.npy") and f"winnow discard {address}" in remedy


def test_and_is_not_tried_again(home: Home, failed: Done) -> None:
    with sqlite3.connect(home.directory / "prefect" / "prefect.db") as database:
        (attempts,) = database.execute("select run_count, state_type from task_run where name = 'diverging'").fetchall()
    assert attempts == (1, "FAILED")


def test_and_mlflow_says_so_too(home: Home, failed: Done) -> None:
    ledger = Ledger.of(home)
    (parent,) = ledger.parents("diverging")
    assert parent.info.status == "FAILED"
    ended = {id: run.info.status for id, run in ledger.children(parent).items()}
    assert ended.pop("diverging") == "FAILED" and set(ended.values()) <= {"FINISHED"}  # the others may have been made before


def test_damage_that_a_job_meets_and_damage_in_the_flow_heal_within_one_run(home: Home, failed: Done) -> None:
    """The tokens are read by the stage alone, the weights by the flow that tells MLflow of what is cached."""
    (data,), (model,) = home.directory.glob("store/prepare/*"), home.directory.glob("store/pretrain/*")
    before = {file.name: file.read_bytes() for file in (*data.iterdir(), *model.iterdir()) if file.is_file()}
    for file in (data / "calibration-00000.npy", model / "model.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = home.run(home.recipe("healed", pretrain("dense", LONG), prune()))
    told = [line for line in done.err.splitlines() if "is kept aside as" in line]
    assert len(told) == 2 and all("made again now" in line for line in told)
    assert f"prepare/{data.name} was damaged (calibration-00000.npy" in "".join(told)
    assert f"pretrain/{model.name} was damaged (model.safetensors" in "".join(told)
    again = home.winnow("verify", "--all", "-p", home.profile)
    assert "0 damaged" in again.out and "2 kept aside" in again.out and done.survivors == []
    assert before["calibration-00000.npy"] == (data / "calibration-00000.npy").read_bytes()
    assert before["model.safetensors"] == (model / "model.safetensors").read_bytes()
