"""A recipe made in parts, on the cluster and in one process, comes to what the whole of it does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from tests.pipeline import LENGTH, Home, Ledger, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "part") as home:
        yield home


def test_until_on_the_cluster_then_only_in_this_process_leave_nothing_to_the_whole_run(home: Home) -> None:
    recipe = home.recipe("parts", pretrain("dense", 4), prune(), evaluate={"perplexity": {"length": LENGTH, "tokens": 1024}})
    home.variables["TEXTS"] = str(home.root)  # Ray would put its value into the key of what the job makes
    recipe.write_text(recipe.read_text().replace(str(home.corpus), f"$TEXTS/{home.corpus.name}"))

    def made(*options: str) -> list[str]:
        stages = home.winnow("run", recipe, "-p", home.profile, "--json", *options).summary["stages"]
        assert all(stage["done"] for stage in stages)
        return [stage["id"] for stage in stages if not stage["cached"]]

    refused = home.winnow("run", recipe, "-p", home.profile, "--only", "prune", code=2)
    assert refused.out == "" and "prepare, is not made yet" in refused.err
    assert made("--until", "pretrain") == ["prepare", "pretrain", "pretrain.perplexity"]
    assert made("--only", "prune", "--here") == ["prune", "prune.perplexity"]
    assert made() == []


def test_strictly_a_model_that_misses_a_gate_is_exit_code_1_and_its_numbers_are_told_all_the_same(home: Home) -> None:
    recipe = home.recipe("gates", pretrain("dense", 4), prune(), evaluate={"perplexity": {"length": LENGTH, "tokens": 1024}})
    run = ("run", recipe, "-p", home.profile, "--here", "--strict", "--json", "--set")
    missed = home.winnow(*run, 'require=["perplexity <= 0.5 * dense", "sparsity >= 0.4"]', code=1)
    line = missed.err.splitlines()[-1]
    assert line.startswith("winnow: prune fails perplexity <= 0.5 * dense (") and "sparsity" not in line
    assert [gate["passes"] for gate in missed.summary["models"][-1]["gates"]] == [False, True]
    passed = home.winnow(*run, 'require=["perplexity <= 2 * dense"]')
    (told,) = [line for line in passed.err.splitlines() if line.startswith("winnow:")]
    assert told == f"winnow: champion of gates moved to version 1 ({passed.summary['models'][-1]['address']})"
    assert all(stage["cached"] for stage in passed.summary["stages"])
    tags = [run.data.tags["winnow.gates.prune"].partition(":")[0] for run in Ledger.of(home).parents("gates")]
    assert tags == ["fails", "passes"]


def test_two_ranks_under_torchrun_train_together_and_what_is_for_one_waits_for_no_other(home: Home) -> None:
    """Libraries that see a process group share work out among its ranks, and would wait for one that is not there."""
    calibration = {"sequences": 16, "length": LENGTH}
    recover = {"recover": {"tokens": 2 * 16 * LENGTH, "length": LENGTH, "batch": 16}}
    quantize = {"quantize": {"method": {"gptq": {"scheme": "W8A8"}}, **calibration}}
    recipe = home.recipe("ranks", pretrain("dense", 2), prune(), recover, quantize)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "flows.cli"]
    document = yaml.safe_load(home.profile.read_text())
    document["stages"]["prune"] = {**document["stages"]["default"], "workers": 2}
    home.profile.write_text(yaml.safe_dump(document))
    command = [*ranks, "run", str(recipe), "-p", str(home.profile), "--here"]
    done = subprocess.run(command, env=home.environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("recover: done in") == 1, "one of the ranks tells"
    stages = home.winnow("run", recipe, "-p", home.profile, "--json").summary["stages"]
    assert all(stage["cached"] for stage in stages)


@pytest.mark.parametrize(
    ("count", "option", "said"),
    [
        ("3", "--here", "recipe.pretrain: batch 16 does not divide among 3 ranks; choose 2 ranks, or another batch"),
        ("2", "--json", "torchrun started 2 ranks, which train where they are: add --here, or leave torchrun out"),
    ],
)
def test_what_torchrun_cannot_do_is_refused_before_anything_is_made(home: Home, count: str, option: str, said: str) -> None:
    recipe, store = home.recipe("refused", pretrain("dense", 3)), home.directory / "store"
    before = set(store.glob("*/*"))
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count, "-m", "flows.cli"]
    command = [*ranks, "run", str(recipe), "-p", str(home.profile), option]
    done = subprocess.run(command, env=home.environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode and f"winnow: {said}" in done.stderr
    assert set(store.glob("*/*")) == before


def test_a_rank_ends_with_the_torchrun_that_was_killed(tmp_path: Path) -> None:
    """Each writes who it is, and would wait for ever."""
    code = (
        "import os, time, pathlib; from flows.ending import end_with_torchrun; end_with_torchrun(); "
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid())); time.sleep(300)"
    )
    (tmp_path / "rank.py").write_text(code)
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "rank.py")]
    with subprocess.Popen(ranks, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as torchrun:
        until = time.monotonic() + 60
        while len(found := [int(text) for file in tmp_path.glob("[01]") if (text := file.read_text())]) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        torchrun.kill()
    _, living = psutil.wait_procs([psutil.Process(pid) for pid in found if psutil.pid_exists(pid)], timeout=20)
    assert not living
