"""Any number of workers gives the same bits: statistics add up exactly, and who solves a matrix changes nothing of it."""

from functools import partial

import numpy as np
import pytest
import torch

from tasks.calibrate.data_parallel import deal, merge
from tasks.calibrate.observe import Hessian, InputNorms
from tasks.calibrate.shared import deal_matrices
from tasks.calibrate.walk import walk
from tasks.calibrate.worker import CalibrationWorker
from tasks.context import Context, Execution
from tasks.formats.mask import load_masks
from tasks.machine import start_workers
from tasks.methods import build, dump
from tasks.models.files.checkpoint import load_model
from tasks.models.files.layout import MASKS
from tasks.models.stream.blocks import BlockStream
from tasks.prune import Prune
from tasks.workers import LocalWorker, start_here
from tests.tasks import models_zoo as zoo


def here(payload):
    return LocalWorker(CalibrationWorker(payload))


def walked(source, output, workers, name, start=here, shelf="pruners", **choices):
    """A walk whose sequences are dealt to this many workers: its report, masks and weights."""
    batches = zoo.batches(count=6, rows=4)
    method = (shelf, dump(build(shelf, name)))
    payload = {"model": str(source), "device": "cpu", "activation_bytes": 10_000, "method": method}
    others = [
        start({**payload, "scratch": str(output / f"worker-{number}"), "tokens": [tokens.tolist() for tokens in part]})
        for number, part in enumerate(deal(batches, workers)[1:])
    ]
    choices = {"sparsity": 0.5 if shelf == "pruners" else 0.0, **choices}
    report = walk(BlockStream(source, output), batches, build(shelf, name), workers=others, **choices)
    return report, load_masks(output / MASKS), load_model(output).state_dict()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "dsnot"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_one_two_and_three_workers_give_the_same_bits(name, architecture, tmp_path):
    source = zoo.save(architecture, tmp_path / "in")
    one, *more = [walked(source, tmp_path / f"{workers}", workers, name) for workers in (1, 2, 3)]
    for report, masks, state in more:
        assert all(torch.equal(masks[linear].packed, mask.packed) for linear, mask in one[1].items())
        assert [block.error for block in report.blocks] == [block.error for block in one[0].blocks]
        assert [block.unseen for block in report.blocks] == [block.unseen for block in one[0].blocks]
        assert state.keys() == one[2].keys() and all(torch.equal(value, one[2][name]) for name, value in state.items())


class Counted(CalibrationWorker):
    """Notes which matrices it was given to solve."""

    def __init__(self, payload):
        super().__init__(payload)
        self.solved = []

    def solve(self, index, share):
        self.solved.append((index, sorted(share.allocation)))
        return super().solve(index, share)


@pytest.mark.parametrize(("name", "shared"), [("sparsegpt", True), ("dsnot", True), ("wanda", False), ("cfsp", False)])
def test_workers_solve_what_takes_long_and_is_solved_apart(name, shared, tmp_path):
    made = []

    def start(payload):
        made.append(Counted(payload))
        return LocalWorker(made[-1])

    pattern = "channel" if name == "cfsp" else "unstructured"
    walked(zoo.save("llama", tmp_path / "in"), tmp_path / "out", 3, name, start, pattern=pattern)
    assert len(made) == 2
    for index in range(2):
        given = [name for worker in made for block, names in worker.solved if block == index for name in names]
        assert bool(given) == shared and len(given) == len(set(given)) < 7


def test_matrices_are_dealt_so_that_all_are_done_soon():
    widths = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "gate": (24, 8), "up": (24, 8), "down": (8, 24)}
    matrices = {name: torch.empty(shape) for name, shape in widths.items()}
    curvature = {name: object() for name in ("qkv", "o", "gate/up", "down")}
    statistics = {name: next(value for key, value in curvature.items() if name in key) for name in matrices}

    assert deal_matrices(matrices, statistics, 1) == [["down", "gate", "up", "q", "k", "v", "o"]]
    assert deal_matrices(matrices, statistics, 3) == [["down"], ["gate", "q", "v"], ["up", "k", "o"]]
    assert sorted(map(len, deal_matrices(matrices, statistics, 9))) == [0, 0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", [InputNorms, Hessian])
def test_matrices_that_share_a_statistic_still_do_after_merging(kind):
    def share(values):
        both, own = kind(2), kind(2)
        both.add(torch.tensor(values))
        own.add(torch.tensor(values))
        return {"q": both, "k": both, "o": own}

    merged = merge([share([[1.0, 2.0]]), share([[3.0, 4.0]]), share([[0.0, 1.0]])])
    assert merged["q"] is merged["k"] and merged["q"] is not merged["o"]
    for name in "qo":
        assert merged[name].count == 3 and merged[name].norm_I.square().tolist() == pytest.approx([10, 21])


def test_what_only_a_later_worker_has_seen_is_taken_over():
    seen = InputNorms(2)
    seen.add(torch.ones(3, 2))
    assert merge([{}, {"expert": seen}])["expert"].count == 3


@pytest.mark.parametrize("start", [partial(start_workers, {}), start_here])
def test_off_the_cluster_what_is_started_is_what_was_asked_for(start):
    first, second = start("collections:Counter", [{"b": 1, "a": 2}, {"c": 3}])
    assert first.call("most_common").result() == [("a", 2), ("b", 1)] and second.call("total").result() == 3


def test_a_stage_in_this_process_shares_its_work_and_loses_none(tmp_path):
    source, data = zoo.save("llama", tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    np.save(data / "calibration-00000.npy", np.random.default_rng(0).integers(3, 64, 2048).astype(np.uint16))
    stage, found = Prune(method="wanda", sparsity=0.5, sequences=8, length=16, batch=2), []
    for workers in (1, 3):
        output = tmp_path / f"{workers}"
        output.mkdir()
        stage.run(Context({"data": data, "model": source}, output, tmp_path / f"{workers}-scratch", Execution(workers=workers)))
        found.append(load_masks(output / MASKS))
    assert all(torch.equal(mask.keep, found[1][name].keep) for name, mask in found[0].items()) and found[0]
    assert (tmp_path / "3-scratch" / "worker-2").is_dir()


def test_batches_are_dealt_in_order_and_evenly():
    batches = [torch.tensor([number]) for number in range(7)]
    assert [[int(batch) for batch in part] for part in deal(batches, 3)] == [[0, 1], [2, 3, 4], [5, 6]]
    assert len(deal(batches, 20)) == 7 and deal([], 3) == [[]]
