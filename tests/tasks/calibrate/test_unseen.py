"""Experts that no calibration token reached: said, and pruned blindly or left whole, under a mask that promises what is so."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.evaluators import Candidate
from tasks.formats.grid import Grid
from tasks.formats.mask import BrokenMask, Mask, load_masks, save_masks
from tasks.formats.pattern import NM
from tasks.methods import build
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.layout import MASKS
from tasks.models.files.promises import check_masks
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tasks.train.masking import Masking
from tests.tasks import models_zoo as zoo

STACK = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def starved(tmp_path_factory):
    """A Mixtral whose router sends every token to the same two experts of four."""
    directory, model = tmp_path_factory.mktemp("starved"), zoo.model("mixtral", layers=1)
    model.model.layers[0].mlp.gate.weight.data.zero_()
    save_model(model.state_dict(), model.config, directory)
    return directory


def prune(source, output, name="wanda", pattern="2:4", **choices):
    return walk(BlockStream(source, output), zoo.batches(), build("pruners", name), sparsity=0.5, pattern=pattern, **choices)


def test_they_are_pruned_like_the_others_and_told(starved, tmp_path):
    report = prune(starved, tmp_path / "out")
    assert len(report.unseen) == 4 and all("experts" in name for name in report.unseen)
    assert report.remarks("pruned by magnitude") == [
        "4 of 12 matrices got no calibration token and were pruned by magnitude; more sequences reach more of them"
    ]
    assert all(mask.live * 2 == mask.numel and not mask.exempt for mask in check_masks(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("wanda", "2:4"), ("wanda", "block:4"), ("sparsegpt", "unstructured"), ("sparsegpt", "2:4"), ("dsnot", "2:4")],
)
def test_left_dense_their_bytes_stay_and_the_others_keep_the_pattern(name, pattern, starved, tmp_path):
    report = prune(starved, tmp_path / "out", name, pattern, unseen="dense")
    before, after, mask = load_model(starved), load_model(tmp_path / "out"), check_masks(tmp_path / "out")[STACK]
    blind = [expert for expert in range(4) if f"{STACK}[{expert}]" in report.unseen]
    assert len(blind) == 2 and mask.exempt == tuple(blind)
    for expert in range(4):
        old, new = before.get_parameter(STACK)[expert], after.get_parameter(STACK)[expert]
        assert torch.equal(old, new) == (expert in blind) and bool(mask.keep[expert].all()) == (expert in blind)
    asked, given = report.remarks("left dense")[1].split(" were to go, and ")
    assert asked.startswith("50.00%") and not given.startswith("50.00%")


def test_the_mask_promises_of_the_others_what_it_did_and_of_them_nothing(starved, tmp_path):
    prune(starved, tmp_path / "out", unseen="dense")
    measured = build("evaluators", "pattern").measure(Candidate(tmp_path / "out", tmp_path))
    assert measured["pattern_holds"] == 1 and measured["zero_weights"] < 0.5
    mask = load_masks(tmp_path / "out" / MASKS)[STACK]
    broken, seen = mask.keep, next(expert for expert in range(4) if expert not in mask.exempt)
    broken[seen, 0, :4] = True
    assert "2:4" in Mask.of(broken, NM(), 0.5, mask.exempt).broken()
    assert Mask.of(mask.keep, NM(), 0.5).broken(), "without the exemption the promise would be a lie"


def test_the_exemption_survives_files_training_and_integers(starved, tmp_path):
    prune(starved, tmp_path / "out", unseen="dense")
    masks = load_masks(tmp_path / "out" / MASKS)
    save_masks(masks, tmp_path / "again")
    assert load_masks(tmp_path / "again")[STACK].exempt == masks[STACK].exempt != ()
    held = Masking(find_linears(load_model(starved)), masks)
    resumed = Masking(held.linears, {})
    resumed.load_state_dict(*held.state_dict())
    assert resumed.masks[STACK].exempt == masks[STACK].exempt
    walk(BlockStream(tmp_path / "out", tmp_path / "integers"), zoo.batches(), build("quantizers", {"gptq": {"group_size": 8}}))
    assert check_masks(tmp_path / "integers")[STACK].exempt == masks[STACK].exempt


def test_a_second_pruning_decides_anew(starved, tmp_path):
    prune(starved, tmp_path / "once", unseen="dense")
    prune(tmp_path / "once", tmp_path / "twice")
    assert all(not mask.exempt and mask.live * 2 == mask.numel for mask in check_masks(tmp_path / "twice").values())


def test_quantizing_rounds_them_to_nearest(starved):
    quantizer, model = build("quantizers", {"gptq": {"group_size": 8}}), zoo.model("mixtral", layers=1)
    model.load_state_dict(load_model(starved).state_dict())
    model.set_experts_implementation("eager")
    before = model.get_parameter(STACK).clone()
    report = walk(ResidentBlocks(model), zoo.batches(), quantizer)
    nearest = build("quantizers", {"round_to_nearest": {"group_size": 8}})
    for expert in range(4):
        rounded = nearest.solve_linear(before[expert], None, Grid(nearest.bits, nearest.group_size)).weight_OI
        same = torch.equal(model.get_parameter(STACK)[expert], rounded)
        assert same == (f"{STACK}[{expert}]" in report.unseen)


def test_a_walk_that_was_begun_otherwise_is_not_taken_up(starved, tmp_path):
    parts = tmp_path / "parts"
    walk(BlockStream(starved, tmp_path / "out", parts=parts), zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    with pytest.raises(ValueError, match="begun with another config"):
        walk(
            BlockStream(starved, tmp_path / "out", parts=parts),
            zoo.batches(),
            build("pruners", "wanda"),
            sparsity=0.5,
            unseen="dense",
        )


def test_a_stack_that_lost_a_seen_experts_pattern_is_found(starved, tmp_path):
    prune(starved, tmp_path / "out", unseen="dense")
    masks = load_masks(tmp_path / "out" / MASKS)
    keep = masks[STACK].keep
    keep[next(expert for expert in range(4) if expert not in masks[STACK].exempt)] = True
    save_masks({**masks, STACK: Mask.of(keep, NM(), 0.5, masks[STACK].exempt)}, tmp_path / "out" / MASKS)
    with pytest.raises(BrokenMask, match="2:4"):
        check_masks(tmp_path / "out")
