"""A method may observe what modules return, and leave what it makes of that beside any module: here, scales of a KV cache."""

import pytest
import torch

from tasks.calibrate.data_parallel import deal
from tasks.calibrate.method import BlockMethod, Edit
from tasks.calibrate.observe import Statistic
from tasks.calibrate.walk import walk
from tasks.calibrate.worker import CalibrationWorker
from tasks.models.files.checkpoint import load_extras, load_model
from tasks.models.files.promises import check_model
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tasks.workers import LocalWorker
from tests.tasks import models_zoo as zoo


class Largest(Statistic):
    """The largest magnitude of all outputs."""

    def __init__(self):
        self.value = torch.zeros(())

    def add(self, value_TO):
        self.value = torch.maximum(self.value, value_TO.abs().amax().float())

    def merge(self, other):
        self.value = torch.maximum(self.value, other.value.to(self.value.device))

    @property
    def finite(self):
        return bool(self.value.isfinite())


class KeyValueScales(BlockMethod):
    """Scales with which all keys and values of the calibration fit into 8-bit floats."""

    owner: str = "self_attn"

    def output_observer(self, name, module):
        return Largest() if name in ("self_attn.k_proj", "self_attn.v_proj") else None

    def solve(self, view):
        largest = {key: view.outputs[f"{view.prefix}self_attn.{key}_proj"].value for key in "kv"}
        scales = {f"{key}_scale": (value / torch.finfo(torch.float8_e4m3fn).max)[None] for key, value in largest.items()}
        return {f"{view.prefix}{self.owner}": Edit(extras=scales)}


def streamed(source, output, method, workers=1, **choices):
    batches = zoo.batches(count=6)
    payload = {"model": str(source), "device": "cpu", "activation_bytes": 10_000, "method": ("pruners", method)}
    others = [
        LocalWorker(
            CalibrationWorker({**payload, "scratch": f"{output}/{number}", "tokens": [tokens.tolist() for tokens in part]})
        )
        for number, part in enumerate(deal(batches, workers)[1:])
    ]
    walk(BlockStream(source, output, **choices), batches, method, workers=others)
    return load_extras(output)


def same(one, other):
    def flat(extras):
        return {(name, key): value for name, given in extras.items() for key, value in given.items()}

    one, other = flat(one), flat(other)
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mixtral"])
def test_streamed_resident_and_shared_walks_leave_the_same_scales_of_every_attention(architecture, tmp_path):
    source, method = zoo.save(architecture, tmp_path / "in"), KeyValueScales()
    extras, resident = streamed(source, tmp_path / "out", method), ResidentBlocks(load_model(source))
    walk(resident, zoo.batches(count=6), method)
    assert extras.keys() == {f"model.layers.{block}.self_attn" for block in range(2)}
    assert same(extras, resident.extras) and same(extras, streamed(source, tmp_path / "shared", method, workers=3))
    check_model(tmp_path / "out")
    before, after = load_model(source).state_dict(), load_model(tmp_path / "out").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_scales_are_those_of_all_that_the_projections_returned(tmp_path):
    model, seen = load_model(zoo.save("llama", tmp_path)), []
    resident = ResidentBlocks(model)
    hook = model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, __, output: seen.append(output.abs().amax()))
    with torch.no_grad():
        for tokens_BT in zoo.batches():
            model(tokens_BT)
    hook.remove()
    walk(resident, zoo.batches(), KeyValueScales())
    assert torch.equal(resident.extras["model.layers.1.self_attn"]["v_scale"], (torch.stack(seen).amax() / 448)[None])
    assert not model.model.layers[1].self_attn.v_proj._forward_hooks, "nothing is left behind"


def test_a_walk_that_goes_on_keeps_the_scales_of_the_blocks_before(tmp_path):
    source, batches = zoo.save("llama", tmp_path / "in"), zoo.batches(count=6)

    class Crash(Exception):
        pass

    def crash(report):
        if report.index == 0:
            raise Crash

    with pytest.raises(Crash):
        walk(BlockStream(source, tmp_path / "out", parts=tmp_path / "parts"), batches, KeyValueScales(), on_block=crash)
    extras = streamed(source, tmp_path / "out", KeyValueScales(), parts=tmp_path / "parts")
    assert same(extras, streamed(source, tmp_path / "whole", KeyValueScales()))


def test_what_cannot_be_observed_or_has_no_owner_is_refused():
    with pytest.raises(ValueError, match="needs calibration data, and there is none"):
        walk(ResidentBlocks(zoo.model("llama")), [], KeyValueScales())
    with pytest.raises(ValueError, match="^extras of model.layers.0.self_atn, which block 0 does not have$"):
        walk(ResidentBlocks(zoo.model("llama")), zoo.batches(), KeyValueScales(owner="self_atn"))
    model = zoo.model("llama")
    model.model.layers[1].self_attn.v_proj.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match="^the outputs of model.layers.1.self_attn.v_proj are not finite"):
        walk(ResidentBlocks(model), zoo.batches(), KeyValueScales())
