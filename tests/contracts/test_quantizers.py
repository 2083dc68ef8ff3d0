"""What every quantizer on the shelf promises: the mask survives, the grid is stored, nothing is silently refitted."""

import pytest
import torch

from tasks.calibrate.walk import walk
from tasks.methods import build, dump, names
from tasks.models.stream.blocks import ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.calibrate.test_data_parallel import walked

quantizers = pytest.mark.parametrize("name", names("quantizers"))


def quantize(model, name, masks=None, **fields):
    resident = ResidentBlocks(model, masks)
    report = walk(resident, zoo.batches(), build("quantizers", {name: {"group_size": 4, **fields}}))
    return resident, report


@quantizers
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_masked_weights_stay_masked(name, pattern, symmetric, tiny):
    pruned = ResidentBlocks(tiny())
    walk(pruned, zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern=pattern)
    masks = dict(pruned.masks)
    resident, _ = quantize(pruned.model, name, masks, symmetric=symmetric)
    assert resident.masks.keys() == masks.keys()
    for linear, mask in resident.masks.items():
        weight = resident.model.get_parameter(linear)
        assert (weight[~mask.keep] == 0).all() and mask.broken() is None
        assert torch.equal(mask.packed, masks[linear].packed) and mask.pattern == masks[linear].pattern


@quantizers
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "W8A8", {"W3A16": {"group_size": 4}}])
def test_masked_weights_stay_masked_and_lie_on_the_grid_of_any_scheme(name, scheme, tiny):
    pruned, method = ResidentBlocks(tiny()), build("quantizers", {name: {"scheme": scheme}})
    walk(pruned, zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern="2:4")
    resident = ResidentBlocks(pruned.model, pruned.masks)
    walk(resident, zoo.batches(), method)
    for linear, mask in resident.masks.items():
        weight, extras = resident.model.get_parameter(linear).detach(), resident.extras[linear]
        assert (weight[~mask.keep] == 0).all() and mask.broken() is None
        grid = method.grid_of(resident.linears[linear])
        assert torch.equal(grid.round_matrix(weight, extras["scale"], extras["zero_point"]), weight)


@quantizers
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_lie_on_the_stored_grid(name, bits, tiny):
    resident, _ = quantize(tiny(), name, bits=bits)
    method = build("quantizers", {name: {"group_size": 4, "bits": bits}})
    assert resident.extras.keys() == resident.linears.keys()
    for linear, extras in resident.extras.items():
        weight = resident.model.get_parameter(linear).detach()
        grid = method.grid_of(resident.linears[linear])
        assert torch.equal(grid.round_matrix(weight, extras["scale"], extras["zero_point"]), weight)


@quantizers
def test_more_bits_lose_less(name, tiny):
    errors = [quantize(tiny(), name, bits=bits)[1].metrics["walk/mean_error"] for bits in (2, 3, 4, 8)]
    assert errors == sorted(errors, reverse=True)


@quantizers
def test_the_same_input_gives_the_same_bits(name, tiny):
    first, again = quantize(tiny(), name)[0].model, quantize(tiny(), name)[0].model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@quantizers
def test_a_dead_input_feature_yields_no_nan(name, tiny):
    resident, _ = quantize(tiny(dead_feature=True), name)
    assert all(parameter.isfinite().all() for parameter in resident.model.parameters())


@quantizers
def test_a_group_size_that_does_not_divide_is_refused_before_any_work(name, tiny):
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="group_size 5 does not divide the input width 32"):
        quantize(model, name, group_size=5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@quantizers
def test_experts_are_quantized_one_by_one(name):
    model = zoo.model("mixtral")
    model.set_experts_implementation("eager")
    resident, _ = quantize(model, name)
    scale = resident.extras["model.layers.0.mlp.experts.down_proj"]["scale"]
    assert scale.shape == (4, 32, 12)


@quantizers
def test_three_workers_make_of_a_model_what_one_makes(name, tmp_path):
    source = zoo.save("llama", tmp_path / "in")
    one, three = (
        walked(source, tmp_path / str(workers), workers, {name: {"group_size": 4}}, shelf="quantizers") for workers in (1, 3)
    )
    assert all(torch.equal(value, three[2][key]) for key, value in one[2].items())


@quantizers
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("quantizers", name)
    assert dump(method).keys() == {name} and build("quantizers", dump(method)) == method and method.paper
