"""Dealing the sequences to workers changes no mask: statistics add up, and the same number of workers gives the same bits.

Sums over batches are float64 here, so that their order decides no near-tie.
"""

from functools import partial

import numpy as np
import pytest
import torch

from tasks.calibrate.data_parallel import deal, merge
from tasks.calibrate.observe import Hessian, InputNorms
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

DOUBLE = {"sparsegpt": {"double": True}}


def walked(source, output, workers, name, start=lambda payload: LocalWorker(CalibrationWorker(payload))):
    """A walk whose sequences are dealt to this many workers."""
    batches = zoo.batches(count=6, rows=4)
    method = ("pruners", dump(build("pruners", name)))
    payload = {"model": str(source), "device": "cpu", "activation_bytes": 10_000, "method": method}
    others = [
        start({**payload, "scratch": str(output / f"worker-{number}"), "tokens": [tokens.tolist() for tokens in part]})
        for number, part in enumerate(deal(batches, workers)[1:])
    ]
    report = walk(BlockStream(source, output), batches, build("pruners", name), sparsity=0.5, workers=others)
    return report, load_masks(output / MASKS), load_model(output).state_dict()


@pytest.mark.parametrize("name", ["wanda", DOUBLE, "dsnot"], ids=["wanda", "sparsegpt", "dsnot"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_masks_are_the_same_for_one_two_and_three_workers(name, architecture, tmp_path):
    source = zoo.save(architecture, tmp_path / "in")
    one, *more = [walked(source, tmp_path / f"{workers}", workers, name) for workers in (1, 2, 3)]
    for report, masks, state in more:
        assert all(torch.equal(masks[linear].packed, mask.packed) for linear, mask in one[1].items())
        assert [block.error for block in report.blocks] == pytest.approx([block.error for block in one[0].blocks], rel=1e-5)
        assert [block.unseen for block in report.blocks] == [block.unseen for block in one[0].blocks]
        assert state.keys() == one[2].keys()


@pytest.mark.parametrize("workers", [2, 3])
def test_a_second_run_with_as_many_workers_gives_the_same_bits(workers, tmp_path):
    source = zoo.save("llama", tmp_path / "in")
    first, again = (walked(source, tmp_path / where, workers, "sparsegpt")[2] for where in ("a", "b"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


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
