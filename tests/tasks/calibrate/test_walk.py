"""The walker: statistics from the dense block behind a compressed prefix, promises checked, masks kept."""

import pytest
import torch

from tasks.calibrate.method import BlockMethod, Edit, Pruner
from tasks.calibrate.walk import walk
from tasks.formats.mask import BrokenMask
from tasks.methods import build
from tasks.models.files.checkpoint import load_model
from tasks.models.files.promises import check_masks, require_subset
from tasks.models.stream.blocks import BlockStream, ResidentBlocks
from tests.tasks import models_zoo as zoo
from tests.tasks.models.stream.test_blocks import eager


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_a_streamed_walk_equals_a_resident_walk_bit_for_bit(architecture, tmp_path):
    source, output = zoo.save(architecture, tmp_path / "in"), tmp_path / "out"
    method = build("pruners", "wanda")
    resident = ResidentBlocks(eager(load_model(source)))
    in_memory = walk(resident, zoo.batches(), method, sparsity=0.5)
    streamed = walk(BlockStream(source, output), zoo.batches(), method, sparsity=0.5)
    after = load_model(output).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in resident.model.state_dict().items())
    assert [block.error for block in in_memory.blocks] == [block.error for block in streamed.blocks]
    assert in_memory.blocks[0].error > 0
    masks = check_masks(output)
    assert masks.keys() == resident.masks.keys() == resident.linears.keys()
    assert all(torch.equal(mask.packed, resident.masks[name].packed) for name, mask in masks.items())


def test_later_blocks_are_fed_by_the_compressed_ones_before():
    model = zoo.model("llama")
    dense_input = ResidentBlocks(zoo.model("llama"))
    walk(ResidentBlocks(model), zoo.batches(), build("pruners", "wanda"), sparsity=0.5)
    with torch.no_grad():
        through = ResidentBlocks(model).capture(zoo.batches())
        expected = list(through.run(model.model.layers[0], 0))
        dense = list(through.run(dense_input.blocks[0], 0))
    seen = []

    class Note(BlockMethod):
        def solve(self, view):
            seen.append([hidden.clone() for hidden in view.inputs])
            return {}

    walk(ResidentBlocks(model), zoo.batches(), Note())
    assert all(torch.equal(a, b) for a, b in zip(seen[1], expected, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen[1], dense, strict=True))


def test_masks_that_came_with_the_model_stay_and_nothing_is_revived(tmp_path):
    source = zoo.save("llama", tmp_path / "dense")
    walk(BlockStream(source, tmp_path / "a"), zoo.batches(), build("pruners", "magnitude"), sparsity=0.3)
    for step, (name, sparsity, pattern) in enumerate([("wanda", 0.5, "unstructured"), ("random", 0.5, "2:4")]):
        before, after = tmp_path / "ab"[step], tmp_path / "bc"[step]
        walk(BlockStream(before, after), zoo.batches(), build("pruners", name), sparsity=sparsity, pattern=pattern)
        require_subset(check_masks(after), check_masks(before))
    walk(BlockStream(tmp_path / "b", tmp_path / "d"), zoo.batches(), build("pruners", "wanda"), sparsity=0.1)
    require_subset(check_masks(tmp_path / "d"), check_masks(tmp_path / "b"))


@pytest.mark.parametrize("pattern", ["block:4", "channel"])
def test_structured_patterns_start_from_masks_too(pattern, tmp_path):
    source = zoo.save("llama", tmp_path / "dense")
    walk(BlockStream(source, tmp_path / "a"), [], build("pruners", "magnitude"), sparsity=0.3)
    walk(
        BlockStream(tmp_path / "a", tmp_path / "b"),
        [],
        build("pruners", "magnitude"),
        sparsity=0.25,
        pattern="unstructured",
    )
    report = walk(BlockStream(source, tmp_path / "c"), zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern=pattern)
    assert set(report.sparsity.values()) == {0.5} and check_masks(tmp_path / "c")


def test_each_linear_may_have_a_sparsity_of_its_own(tmp_path):
    stream = BlockStream(zoo.save("llama", tmp_path / "in"), tmp_path / "out")
    levels = {name: 0.25 if "mlp" in name else 0.5 for name in stream.linears}
    report = walk(stream, zoo.batches(), build("pruners", "wanda"), sparsity=levels)
    assert report.sparsity == pytest.approx(levels)
    with pytest.raises(ValueError, match="every linear and only those"):
        walk(BlockStream(tmp_path / "in"), [], build("pruners", "magnitude"), sparsity={"nothing": 0.5})


def test_refusals_come_before_any_work(tmp_path):
    stream = BlockStream(zoo.save("llama", tmp_path))
    with pytest.raises(ValueError, match="needs calibration data"):
        walk(stream, [], build("pruners", "wanda"), sparsity=0.5)
    with pytest.raises(ValueError, match=r"contradicts 0.6 \(model.layers.0.self_attn.q_proj.weight\)"):
        walk(stream, zoo.batches(), build("pruners", "wanda"), sparsity=0.6, pattern="2:4")
    with pytest.raises(ValueError, match="group_size 128 does not divide the input width 32"):
        walk(stream, zoo.batches(), build("quantizers", "gptq"))


def test_an_edit_that_breaks_its_promise_fails_the_walk():
    class Sloppy(Pruner):
        def solve(self, view):
            edits = {name: Edit(weight, torch.ones_like(weight, dtype=torch.bool)) for name, weight in view.matrices.items()}
            return edits

    with pytest.raises(BrokenMask, match=r"q_proj.weight is broken: .* broke 2:4 at sparsity 0.5"):
        walk(ResidentBlocks(zoo.model("llama")), [], Sloppy(), sparsity=0.5, pattern="2:4")

    class Reviver(BlockMethod):
        def solve(self, view):
            return {name: Edit(torch.ones_like(weight)) for name, weight in view.matrices.items()}

    model = zoo.model("llama")
    resident = ResidentBlocks(model)
    walk(resident, [], build("pruners", "magnitude"), sparsity=0.5)
    with pytest.raises(BrokenMask, match="dead weights that are not zero"):
        walk(ResidentBlocks(model, resident.masks), [], Reviver())


def test_a_method_may_edit_any_parameter_of_the_block():
    class Norms(BlockMethod):
        def solve(self, view):
            name = f"model.layers.{view.index}.input_layernorm.weight"
            return {name: Edit(torch.full((32,), 2.0))}

    model = zoo.model("llama")
    walk(ResidentBlocks(model), zoo.batches(), Norms())
    assert (model.model.layers[1].input_layernorm.weight == 2).all()


def test_progress_is_told_after_every_block():
    told = []
    walk(
        ResidentBlocks(zoo.model("gpt2", layers=3)),
        zoo.batches(),
        build("pruners", "wanda"),
        sparsity=0.5,
        on_block=told.append,
    )
    assert [(block.index, block.depth) for block in told] == [(0, 3), (1, 3), (2, 3)]
    assert all(block.seconds > 0 and block.peak_bytes > 0 and 0 < block.error < 1 for block in told)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_experts_are_pruned_saved_and_reloaded(architecture, tmp_path):
    stream = BlockStream(zoo.save(architecture, tmp_path / "in"), tmp_path / "out")
    walk(stream, zoo.batches(), build("pruners", "wanda"), sparsity=0.5, pattern="2:4")
    after = load_model(tmp_path / "out").state_dict()
    for name, mask in check_masks(tmp_path / "out").items():
        matrix = stream.linears[name].matrix(after[name])
        assert mask.shape == tuple(matrix.shape) and ((matrix != 0) == mask.keep).all()
    assert any(len(mask.shape) == 3 for mask in check_masks(tmp_path / "out").values())


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "dsnot"])
def test_statistics_of_a_bfloat16_model_are_sums_in_full_precision(name):
    model = zoo.model("llama", dtype=torch.bfloat16)
    kinds = set()

    class Note(type(build("pruners", name))):
        @property
        def name(self):
            return name

        def solve_linear(self, weight_OI, statistics, *rest):
            own = getattr(statistics, "own", statistics)
            held = [*vars(own).values(), *getattr(own, "strips", [])]
            kinds.update(value.dtype for value in held if isinstance(value, torch.Tensor))
            return super().solve_linear(weight_OI, statistics, *rest)

    walk(ResidentBlocks(model), zoo.batches(), Note(), sparsity=0.5)
    assert kinds and kinds <= {torch.float32, torch.float64} and model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "dsnot"])
def test_inputs_that_are_not_finite_are_named_by_their_layer(name):
    model = zoo.model("llama")
    model.model.layers[1].input_layernorm.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"inputs of model\.layers\.1\.self_attn\.\w+_proj\.weight are not finite"):
        walk(ResidentBlocks(model), zoo.batches(), build("pruners", name), sparsity=0.5)
