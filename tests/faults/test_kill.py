"""Kill -9 of a rank, of the stage driver and of the flow process in mid-pretrain: the same bits come out."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORDS = [f"{first}{second}" for first in ("ba", "do", "ki", "lu", "me") for second in ("n", "r", "st", "x", "ng")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Standing servers of its own, a corpus, and a recipe of a run long enough to be killed in."""
    home = tmp_path_factory.mktemp("faults")
    chance = random.Random(0)
    documents = [json.dumps({"text": " ".join(chance.choices(WORDS, k=600))}) for _ in range(60)]
    (home / "corpus.jsonl").write_text("\n".join(documents))
    recipe = {
        "name": "killed",
        "model": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
        },
        "stages": [
            {"prepare": {"corpus": {"files": {"paths": [str(home / "corpus.jsonl")]}}, "tokenizer": {"train": 300}}},
            {
                "pretrain": {
                    "method": {"gradual": {"sparsity": 0.6, "interval": 20}},
                    "tokens": 500 * 16 * 64,
                    "length": 64,
                    "batch": 16,
                }
            },
        ],
    }
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    winnow(home, "up")
    yield home
    winnow(home, "down")


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "WINNOW_HOME": str(home / "winnow"), "HOME": str(home)}


def winnow(home: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Undertaking:
    """One run of the recipe into a store of its own, on two ranks, saving itself every second."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.root = home, home / name
        self.root.mkdir()
        profile = {
            "name": name,
            "store": str(self.root / "store"),
            "scratch": str(self.root / "scratch"),
            "ranks": 2,
            "zero": 2,
            "checkpoint_every_seconds": 1.0,
            "stages": {"pretrain": {"cpus": 1, "threads": 1}},
        }
        (self.root / "profile.yaml").write_text(yaml.safe_dump(profile))
        arguments = ["run", str(home / "recipe.yaml"), "-p", str(self.root / "profile.yaml"), "--json"]
        self.command = [sys.executable, "-m", "flows.cli", *arguments]

    def start(self) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command, env=environment(self.home), **pipes)

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + 240
        while not list(self.root.glob("scratch/pretrain/*/checkpoints/step-*/manifest.json")):
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.05)

    def finish(self, process: subprocess.Popen) -> tuple[dict, str]:
        """(the JSON object, sha256 of the weights)."""
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, out + err
        (record,) = self.root.glob("store/pretrain/*/record.json")
        return json.loads(out), json.loads(record.read_text())["files"]["model.safetensors"]["sha256"]


def victims(home: Path, fits: Callable[[str], bool]) -> list[psutil.Process]:
    """This home's processes whose command line fits; never anybody else's."""
    found = []
    for process in psutil.process_iter():
        try:
            if fits(" ".join(process.cmdline())) and str(home) in str(process.environ().get("WINNOW_HOME", "")):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> str:
    run = Undertaking(home, "undisturbed")
    summary, digest = run.finish(run.start())
    assert [stage["cached"] for stage in summary["stages"]] == [False, False]
    return digest


def test_a_killed_rank_changes_nothing(home: Path, undisturbed: str) -> None:
    run = Undertaking(home, "rank")
    process = run.start()
    run.wait_for_checkpoint()
    ranks = victims(home, lambda line: "RayTrainWorker" in line)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    assert run.finish(process)[1] == undisturbed


def test_a_killed_stage_driver_changes_nothing(home: Path, undisturbed: str) -> None:
    run = Undertaking(home, "driver")
    process = run.start()
    run.wait_for_checkpoint()
    (driver,) = victims(home, lambda line: "-m tasks.job" in line and "exec" not in line)
    driver.send_signal(signal.SIGKILL)
    assert run.finish(process)[1] == undisturbed


def test_a_killed_flow_process_is_taken_up_by_the_next(home: Path, undisturbed: str) -> None:
    run = Undertaking(home, "flow")
    process = run.start()
    run.wait_for_checkpoint()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (driver,) = victims(home, lambda line: "-m tasks.job" in line and "exec" not in line)
    assert run.finish(run.start())[1] == undisturbed
    deadline = time.monotonic() + 60  # the job was still closing when what it made was there
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the job of the killed flow goes on"
        time.sleep(0.1)
