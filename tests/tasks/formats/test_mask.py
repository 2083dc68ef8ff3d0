"""Masks pack to bits, carry their promise, and say when it is broken."""

import pytest
import torch

from tasks.formats.mask import Mask, load_masks, pack, save_masks, unpack
from tasks.formats.pattern import NM, Unstructured


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 7), (2, 5, 9)])
def test_unpack_inverts_pack(shape):
    keep = torch.rand(shape) > 0.5
    assert pack(keep).numel() == (keep.numel() + 7) // 8
    assert torch.equal(unpack(pack(keep), shape), keep)


def test_files_give_back_masks_and_promises(tmp_path):
    masks = {
        "b": Mask.of(torch.rand(4, 8) > 0.5, "2:4", 0.5),
        "a": Mask.of(torch.rand(3, 5) > 0.5, Unstructured("row"), 0.3),
    }
    save_masks(masks, tmp_path / "masks.safetensors")
    loaded = load_masks(tmp_path / "masks.safetensors")
    assert loaded.keys() == masks.keys() and loaded["a"].pattern == "unstructured:row" and loaded["b"].sparsity == 0.5
    assert all(torch.equal(loaded[name].keep, masks[name].keep) for name in masks)
    assert load_masks(tmp_path / "masks.safetensors", ["b", "c"]).keys() == {"b"}
    assert load_masks(tmp_path / "absent") == {}


def test_a_broken_promise_is_told_even_at_the_right_density():
    keep = NM().keep(torch.rand(4, 8), 0.5)
    assert Mask.of(keep, "2:4", 0.5).broken() is None
    keep[0] = torch.tensor([True, True, True, True, False, False, False, False])
    assert "2:4" in Mask.of(keep, "2:4", 0.5).broken()


def test_every_expert_keeps_the_promise_by_itself():
    keep = torch.zeros(2, 4, 4, dtype=torch.bool)
    keep[0] = True
    assert Mask.of(keep, "unstructured", 0.5).broken()
