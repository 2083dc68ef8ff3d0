"""A quantized model that plain transformers does not read as ours is not published, and the error says what differed."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from tasks.formats.mask import BrokenMask
from tasks.models import export
from tests.tasks.workshop import CALIBRATION, LLAMA, TRAINING, Workshop

UP = "model.layers.0.mlp.up_proj"
FIELDS = {"method": {"round_to_nearest": {"group_size": 8}}, **CALIBRATION}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    data = shop.data()
    dense = shop.make("pretrain", {"model": LLAMA, **TRAINING, "tokens": 512}, data=data)
    pruned = shop.make("prune", {"method": "magnitude", "pattern": "2:4", **CALIBRATION}, data=data, model=dense)
    return shop, {"data": data, "model": pruned}


def other_scales(directory):
    file = directory / "model.safetensors"
    state = load_file(file)
    state[f"{UP}.weight_scale"] *= 1.5
    save_file(state, file, {"format": "pt"})


def other_codes(directory):
    file = directory / "model.safetensors"
    state = load_file(file)
    state[f"{UP}.weight_packed"][3] ^= 0x11111111  # zeros become ones
    save_file(state, file, {"format": "pt"})


def cut(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def another_head(directory):
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"]["ignore"] = []
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (other_scales, ValueError, r"does not read back: its logits differ by up to"),
        (other_codes, BrokenMask, rf"{UP}.weight is broken: \d+ dead weights are not zero as transformers loads them"),
        (cut, ValueError, r"is truncated: \d+ bytes where \d+ are needed"),
        (another_head, ValueError, r"plain transformers cannot load the export in .*: missing keys lm_head.weight_packed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_spoiled_while_it_is_written_is_not_published(made, monkeypatch, spoil, error, says):
    shop, parents = made
    write = export.write_packed

    def spoiled(*given):
        write(*given)
        spoil(given[-1])

    monkeypatch.setattr(export, "write_packed", spoiled)
    with pytest.raises(error, match=says) as refused:
        shop.make("quantize", FIELDS, **parents)
    assert "\n" not in str(refused.value) and not shop.store.addresses("quantize")


@pytest.mark.parametrize("kind", ["FP8", "INT8"])
def test_a_cache_in_eight_bits_is_measured_as_it_is_served_and_is_another_key(made, kind):
    shop, parents = made
    plain, cached = ({**FIELDS, **more} for more in ({}, {"kv_cache": kind}))
    first, second = (shop.make("quantize", fields, **parents) for fields in (plain, cached))
    assert "kv_cache" not in first.params and second.params["kv_cache"] == kind
    assert second.metrics["export_logits_error"] == 0
    window = {"perplexity": {"length": 32, "tokens": 512}}
    losses = [shop.measure(window, data=parents["data"], model=record)["heldout_loss"] for record in (first, second)]
    assert 0 < abs(losses[0] - losses[1]) < 0.05
