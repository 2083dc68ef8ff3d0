"""What every pruner of weights on the shelf promises, whatever its depth: run through the walker, as recipes run it.

What those promise that leave a smaller model stands in tests/contracts/test_resizers.py.
"""

import pytest
import torch

from tasks.calibrate.resizer import Resizer
from tasks.calibrate.walk import walk
from tasks.formats.mask import load_masks
from tasks.formats.pattern import parse_pattern
from tasks.methods import build, dump, load, names
from tasks.models.files.layout import MASKS
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.calibrate.test_data_parallel import walked

SPARSITIES = [0, 0.1, 0.33, 0.5, 0.55, 0.7, 0.95]
EXAMPLES = {
    "unstructured": "unstructured",
    "N:M": "2:4",
    "block": "block:4",
    "group": "group:4",
    "channel": "channel",
    "neuron": "neuron",
}
WALKED = [name for name in names("pruners") if not issubclass(load("pruners", name), Resizer)]
PATTERNS = {name: build("pruners", name).patterns for name in WALKED}
pruners = pytest.mark.parametrize("name", WALKED)
single = pytest.mark.parametrize("name", [name for name in PATTERNS if "unstructured" in PATTERNS[name]])


def prune(model, name, sparsity=0.5, pattern=None, masks=None):
    resident, pattern = ResidentBlocks(model, masks), pattern or EXAMPLES[PATTERNS[name][0]]
    report = walk(resident, zoo.batches(), build("pruners", name), sparsity=sparsity, pattern=pattern)
    return resident, report


@single
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_pattern_holds_at_odd_widths(name, sparsity, tiny):
    resident, _ = prune(tiny(odd=True), name, sparsity)
    pattern = parse_pattern("unstructured", build("pruners", name).scope)
    for linear, mask in resident.masks.items():
        assert pattern.holds(mask.keep, sparsity) and mask.broken() is None
        stored = resident.linears[linear].matrix(resident.model.get_parameter(linear))
        assert (stored[~mask.keep] == 0).all() and stored.isfinite().all()
        if sparsity == 0:
            assert mask.keep.all()


@single
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_n_of_m_holds_and_a_contradicting_sparsity_is_refused(name, pattern, tiny):
    resident, _ = prune(tiny(), name, 0.5, pattern)
    assert all(mask.broken() is None and mask.live == mask.numel // 2 for mask in resident.masks.values())
    with pytest.raises(ValueError, match="contradicts"):
        prune(tiny(), name, 0.6, pattern)


@pruners
def test_the_same_seed_gives_the_same_bits(name, tiny):
    first, _ = prune(tiny(), name)
    again, _ = prune(tiny(), name)
    assert all(torch.equal(first.masks[linear].packed, mask.packed) for linear, mask in again.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


@pruners
def test_a_dead_input_feature_yields_no_nan(name, tiny):
    resident, report = prune(tiny(dead_feature=True), name)
    assert all(parameter.isfinite().all() for parameter in resident.model.parameters())
    assert report.blocks[0].error == report.blocks[0].error


@single
def test_what_is_dead_stays_dead(name, tiny):
    first, _ = prune(tiny(), "random", 0.3)
    parents = {linear: mask.keep for linear, mask in first.masks.items()}
    second, _ = prune(first.model, name, 0.5, masks=first.masks)
    assert not any((mask.keep & ~parents[linear]).any() for linear, mask in second.masks.items())
    assert all(abs(mask.live / mask.numel - 0.5) < 0.02 for mask in second.masks.values())


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in PATTERNS for kind in EXAMPLES])
def test_every_pattern_that_makes_sense_is_kept_and_the_rest_refused_before_any_work(name, kind, tiny):
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if kind in PATTERNS[name]:
        resident, _ = prune(model, name, 0.5, EXAMPLES[kind])
        assert resident.masks and all(mask.broken() is None for mask in resident.masks.values())
        assert any(0.4 < 1 - mask.live / mask.numel < 0.6 for mask in resident.masks.values())
        return
    with pytest.raises(ValueError, match=f"{name} cannot keep pattern .*; choose one of {PATTERNS[name][0]}"):
        prune(model, name, 0.5, EXAMPLES[kind])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "qwen3", "gemma", "mixtral"])
@pruners
def test_every_architecture_is_pruned_or_refused_in_one_line(name, architecture):
    model = zoo.model(architecture)
    if architecture == "mixtral":
        model.set_experts_implementation("eager")
    try:
        resident, _ = prune(model, name, 0.5)
    except ValueError as refusal:
        assert architecture == "mixtral" and str(refusal).startswith("unsupported: ") and "\n" not in str(refusal)
        return
    assert resident.masks and all(mask.broken() is None for mask in resident.masks.values())
    with torch.no_grad():
        assert model(zoo.batches()[0]).logits.isfinite().all()


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != "random" and "unstructured" in PATTERNS[name]])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_it_beats_chance_on_anisotropic_inputs(name, pattern, tiny):
    _, ours = prune(tiny(), name, 0.5, pattern)
    _, chance = prune(tiny(), "random", 0.5, pattern)
    assert ours.metrics["walk/mean_error"] < chance.metrics["walk/mean_error"]


def test_wanda_beats_magnitude_on_anisotropic_inputs(tiny):
    _, wanda = prune(tiny(), "wanda")
    _, magnitude = prune(tiny(), "magnitude")
    assert wanda.metrics["walk/mean_error"] < magnitude.metrics["walk/mean_error"]


@pruners
def test_streamed_equals_resident(name, tmp_path):
    source, output = zoo.save("llama", tmp_path / "in"), tmp_path / "out"
    resident, _ = prune(zoo.model("llama"), name)
    pattern = EXAMPLES[PATTERNS[name][0]]
    walk(BlockStream(source, output), zoo.batches(), build("pruners", name), sparsity=0.5, pattern=pattern)
    masks = load_masks(output / MASKS)
    assert masks.keys() == resident.masks.keys()
    assert all(torch.equal(mask.packed, resident.masks[linear].packed) for linear, mask in masks.items())


@pruners
def test_three_workers_make_of_a_model_what_one_makes(name, tmp_path):
    source = zoo.save("llama", tmp_path / "in")
    one, three = (
        walked(source, tmp_path / str(workers), workers, name, pattern=EXAMPLES[PATTERNS[name][0]]) for workers in (1, 3)
    )
    assert all(mask.packed.equal(three[1][linear].packed) for linear, mask in one[1].items()) and one[1]
    assert all(torch.equal(value, three[2][key]) for key, value in one[2].items())


@pruners
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("pruners", name)
    assert dump(method).keys() == {name} and build("pruners", dump(method)) == method and method.paper
