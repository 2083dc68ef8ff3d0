"""Bits are spent where they save most, never more of them than there are."""

from itertools import product
from math import prod

import pytest
import torch
import yaml

from tasks.calibrate.both import Magnitudes
from tasks.calibrate.method import BlockView
from tasks.calibrate.precision import Precision, cheapest, stored_bits
from tasks.calibrate.scan import scan
from tasks.calibrate.walk import walk
from tasks.formats.pattern import Unstructured
from tasks.methods import build
from tasks.models.files.schemes import integers, read_scheme
from tasks.models.find.linears import Linear, find_linears
from tasks.models.stream.blocks import ResidentBlocks
from tasks.quantize import Quantize
from tests.tasks import models_zoo as zoo

CHOICES = tuple({name: {"group_size": 16}} for name in ("W2A16", "W4A16", "W8A16"))


def test_the_cheapest_choice_is_that_of_trying_all():
    generator = torch.Generator().manual_seed(0)
    sizes = {"a": 3, "b": 5, "c": 8, "d": 2, "e": 7, "f": 4}
    bits = {name: {choice: size * (choice + 1) for choice in range(3)} for name, size in sizes.items()}
    curves = {name: torch.rand(3, generator=generator).sort(descending=True)[0].tolist() for name in sizes}
    losses = {name: dict(enumerate(curve)) for name, curve in curves.items()}
    for budget in (29, 40, 55, 87):
        best = min(
            sum(losses[name][choice] for name, choice in zip(losses, taken, strict=True))
            for taken in product(range(3), repeat=6)
            if sum(bits[name][choice] for name, choice in zip(losses, taken, strict=True)) <= budget
        )
        found = cheapest(losses, bits, budget)
        assert sum(bits[name][choice] for name, choice in found.items()) <= budget
        assert sum(losses[name][choice] for name, choice in found.items()) == pytest.approx(best)
    with pytest.raises(ValueError, match=r"precision.budget: the cheapest choices take 1.04 times as much; raise it"):
        cheapest(losses, bits, 28)


def test_scales_and_zero_points_count():
    """4 bits in groups of 16: a scale of 16 bits is one bit a weight, and a zero point a quarter."""
    assert stored_bits((8, 32), integers(4, 16, True)) == 5 * 256
    assert stored_bits((8, 32), integers(4, 16, False)) == 5.25 * 256
    assert stored_bits((8, 32), read_scheme("FP8")) == 8 * 256 + 16


def test_schemes_that_round_inputs_are_charged_the_byte_that_a_weight_takes():
    """compressed-tensors packs only weights whose inputs stay as they are."""
    assert stored_bits((8, 32), read_scheme({"W4A8": {"group_size": 16}})) == 9 * 256
    assert stored_bits((8, 32), read_scheme({"W4A8": {"group_size": 16, "symmetric": False}})) == 9.5 * 256
    choices = ({"W4A8": {"group_size": 16}}, {"W8A8": {"strategy": "group", "group_size": 16}})
    with pytest.raises(ValueError, match=r"precision.budget: the cheapest choices take 1.8 times as much; raise it"):
        Precision(budget=5.0, choices=choices).check(build("quantizers", "gptq"), find_linears(zoo.model("llama")))


def test_a_budget_spent_by_sensitivity_beats_the_same_bits_everywhere():
    """A model one of whose matrices decides much more than the others."""

    def model():
        made = zoo.model("llama")
        with torch.no_grad():
            made.model.layers[0].mlp.down_proj.weight.mul_(6)
            made.model.layers[1].self_attn.o_proj.weight.mul_(0.1)
        return made

    uniform = build("quantizers", {"gptq": {"scheme": CHOICES[1]}})
    precision, stream = Precision(budget=5.0, choices=CHOICES), ResidentBlocks(model())
    schemes = precision.choose(build("quantizers", "gptq"), scan(stream, zoo.batches()))
    bits = {name: int(next(iter(spec))[1]) for name, spec in schemes.items()}
    assert bits["model.layers.0.mlp.down_proj"] > bits["model.layers.1.self_attn.o_proj"]
    assert len({bits[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv"}) == 1, "serving engines fuse them"
    linears = find_linears(stream.model)
    spent = sum((bits[name.removesuffix(".weight")] + 1) * prod(linear.shape) for name, linear in linears.items())
    assert spent <= 5.0 * sum(prod(linear.shape) for linear in linears.values()) and len(bits) == len(linears)
    mixed = build("quantizers", {"gptq": {"schemes": schemes}})
    errors = [walk(ResidentBlocks(model()), zoo.batches(), method).metrics["walk/mean_error"] for method in (mixed, uniform)]
    assert errors[0] < errors[1]


def test_what_a_scheme_makes_of_the_inputs_counts_in_numbers_that_can_be_checked_by_hand():
    """A block that is one linear with the identity for weights, which any of these grids has exactly. E4M3 reaches to 448, in
    [16, 32) by steps of 2 and below 2**-6 by steps of 2**-9; a token's own scale is its largest value over 448."""
    name, block = "model.layers.0.proj.weight", torch.nn.Module()
    block.proj = torch.nn.Linear(2, 2, bias=False)
    block.proj.weight.data = 448 * torch.eye(2)
    tokens = torch.tensor([[[448.0, 17.3], [3.5, 0.001]]])
    seen = Magnitudes(2)
    seen.add(tokens[0])
    view = BlockView(
        index=0,
        prefix="model.layers.0.",
        linears={name: Linear(name, (2, 2))},
        matrices={name: block.proj.weight.data},
        keep={},
        statistics={name: seen},
        outputs={},
        allocation={},
        pattern=Unstructured(),
        module=block,
        inputs=[tokens],
        run=lambda first=None: iter([block.proj(tokens)]),
    )
    schemes = {number: read_scheme(name) for number, name in enumerate(("FP8_DYNAMIC", "FP8"))}
    unrounded = schemes[0].model_copy(update={"input_activations": None})
    with torch.no_grad():
        found = Precision().losses(view, list(view.linears.values()), {**schemes, 2: unrounded}, list(view.run()))
    first = 0.7**2 / (448**2 + 17.3**2)  # 17.3 becomes 18, by either scale
    second = [(0.001 - step) ** 2 / 3.5**2 for step in (2**-10, 2**-9)]  # 0.128 / 128 by its own scale, else by 448's
    assert found[0] == pytest.approx((first + second[0]) / 2, rel=1e-3)
    assert found[1] == pytest.approx((first + second[1]) / 2, rel=1e-3)
    assert found[2] == 0


def test_at_equal_bytes_a_scheme_that_rounds_inputs_besides_is_chosen_by_none():
    weights_only = {"W8A16": {"strategy": "channel", "group_size": None}}
    precision, stream = Precision(budget=16, choices=("W8A8", weights_only)), ResidentBlocks(zoo.model("llama"))
    chosen = precision.choose(build("quantizers", "gptq"), scan(stream, zoo.batches()))
    assert len(chosen) == len(stream.linears) and all(spec == weights_only for spec in chosen.values())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"method": {"gptq": {"bits": 3}}, "precision": {}}, "precision chooses what gptq.bits says; leave one of them out"),
        ({"method": "gptq", "precision": {"choices": ["W4A16"]}}, "at least 2 items"),
        ({"method": "gptq", "precision": {"budget": 0}}, "greater than 0"),
    ],
)
def test_precision_and_a_scheme_are_not_said_at_once(fields, match):
    with pytest.raises(ValueError, match=match):
        Quantize(**fields).check_written()


def test_what_fits_no_matrix_or_no_budget_is_refused_before_any_work():
    linears, method = find_linears(zoo.model("llama")), build("quantizers", "gptq")
    with pytest.raises(ValueError, match=r"precision.choices: no groups divide the input width 32 \(model.layers.0") as raised:
        Precision(choices=("W2A16", {"W8A16": {"symmetric": False}})).check(method, linears)
    remedy = "write choices: [{W2A16: {group_size: 16}}, {W8A16: {symmetric: False, group_size: 16}}] (or 8, 4)"
    assert str(raised.value).endswith(remedy)
    Precision(budget=5, choices=yaml.safe_load(remedy[remedy.index("[") : remedy.index("]") + 1])).check(method, linears)
    with pytest.raises(ValueError, match=r"precision.budget: the cheapest choices take 1.5 times as much"):
        Precision(budget=2, choices=CHOICES).check(method, linears)
    with pytest.raises(ValueError, match=r"UNQUANTIZED is no choice"):
        Precision(choices=("W8A8", "UNQUANTIZED")).check(method, linears)
    with pytest.raises(ValueError, match="gptq cannot make NVFP4"):
        Precision(choices=("W8A8", "NVFP4")).check(method, linears)
    Precision(budget=5, choices=CHOICES).check(method, linears)
