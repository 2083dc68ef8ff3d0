"""A rank that hangs or runs out of memory says so in one line, and what died is told by the pulse that it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster.ray.retries import said_of
from cluster.ray.targets import TargetFailed
from tasks.refusal import refused
from tasks.train.watch import HUNG, Watch, last_words, read_pulse

STAGE, ROOT = "pretrain/dense-0123", Path(__file__).parents[3]


def watch(directory: Path, rank: int = 0, ranks: int = 1, patience: float = 600.0) -> Watch:
    return Watch(directory, STAGE, rank, ranks, 500, patience, lambda: "set micro_batch to 4")


def hang(seconds: float) -> None:
    time.sleep(seconds)


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "GPU"),
        (RuntimeError("... can't allocate memory: ..."), "host"),
    ],
)
def test_a_rank_that_runs_out_of_memory_names_itself_stage_step_and_what_to_change(error, whose, tmp_path):
    with pytest.raises(ValueError, match="ran out") as told, watch(tmp_path, rank=1, ranks=2) as over:
        for done in range(1, 12):
            over.step(done)
        raise error
    line = f"rank 1 of 2 ran out of {whose} memory in step 12 of 500 of {STAGE}; set micro_batch to 4 in the profile"
    assert str(told.value) == line and refused(told.value)  # so it is told as it is, and not tried again


def test_another_error_passes_as_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="^shapes$"), watch(tmp_path):
        raise RuntimeError("shapes")


def test_ranks_that_hang_say_who_stands_where_and_end_but_one_alone_may_wait(tmp_path):
    outputs = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(tmp_path), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in outputs]
    assert [process.returncode for process in outputs] == [HUNG, HUNG]
    (line,) = "".join(said).splitlines()
    assert f"no step for 4 s in step 8 of 500 of {STAGE}: " in line and "raise patience in the profile" in line
    assert "rank 1 stands at test_watch.py:" in line and "hang" in line
    assert last_words(tmp_path, STAGE, 0) == line
    with watch(tmp_path / "alone", patience=0.1) as over:
        over.step(1)
        time.sleep(1.5)


def test_what_became_of_a_rank_is_told_with_where_it_was(tmp_path):
    assert last_words(tmp_path, STAGE, 0) == f"before the first step of {STAGE}"
    with watch(tmp_path, patience=0.1) as over:
        over.step(7)
        time.sleep(0.3)
    assert read_pulse(tmp_path, 0)["step"] == "step 8 of 500"

    def seen(rank: int) -> str:
        return last_words(tmp_path, STAGE, rank)

    assert said_of(0, TargetFailed("KeyError: no layer\nTraceback ..."), seen) == (
        f"rank 0 failed in step 8 of 500 of {STAGE}: KeyError: no layer"
    )
    died = said_of(0, RuntimeError("worker crashed"), seen)
    assert died.startswith(f"rank 0 died in step 8 of 500 of {STAGE} (RuntimeError)") and "lower micro_batch" in died


@pytest.mark.parametrize("raises", ["never", "after", "before"])
def test_under_torchrun_the_ranks_that_are_left_say_once_who_died(tmp_path, raises):
    """Whether a collective waits on, or fails, when a rank is gone or about to be."""
    assert torchrun(tmp_path, "1", raises) == [
        f"rank 1 of 3 died in step 8 of 500 of {STAGE}; where no line says why, memory may have run out: "
        "lower micro_batch in the profile; run the same command to go on"
    ]


def test_under_torchrun_ranks_that_are_stopped_say_once_where(tmp_path):
    assert torchrun(tmp_path, "none", "never") == [f"stopped in step 8 of 500 of {STAGE}; run the same command to go on"]


def torchrun(directory: Path, dies: str, raises: str) -> list[str]:
    """The lines of ours that three ranks leave, of which one dies, or which are stopped."""
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3", "-m", __name__]
    with subprocess.Popen([*ranks, str(directory), dies, raises], stderr=subprocess.PIPE, text=True, cwd=ROOT) as started:
        until = time.monotonic() + 60
        while dies == "none" and len(list(directory.glob("rank-*.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        if dies == "none":
            time.sleep(1)
            started.terminate()
        said = started.communicate(timeout=60)[1]
    return [line for line in said.splitlines() if STAGE in line]


def await_all(directory: Path, ranks: int) -> None:
    """Until each of them has told of its step."""
    while len(list(directory.glob("rank-*.json"))) < ranks or any(
        "step 8" not in read_pulse(directory, n)["step"] for n in range(ranks)
    ):
        time.sleep(0.1)


def is_rank(directory: Path, dies: str, raises: str) -> None:
    rank = int(os.environ["RANK"])
    with watch(directory, rank, 3, patience=2.5) as over:
        over.step(7)
        await_all(directory, 3)
        if str(rank) == dies:
            time.sleep(0.5 if raises == "before" else 0.0)
            os.kill(os.getpid(), signal.SIGKILL)
        while raises == "after" and Path("/proc", str(read_pulse(directory, int(dies))["pid"])).exists():
            time.sleep(0.01)
        if raises != "never":
            raise RuntimeError("Connection closed by peer")
        hang(60)


if __name__ == "__main__":
    if "RANK" in os.environ:
        is_rank(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    with watch(Path(sys.argv[1]), int(sys.argv[2]), 2, patience=4.0) as over:
        over.step(7)
        await_all(Path(sys.argv[1]), 2)
        hang(60)
