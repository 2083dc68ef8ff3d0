"""The forecast of a training step against runs that were measured on H100s: memory and time within 15 %, and what to change."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tasks.context import Context, Execution
from tasks.formats.grid import Grid
from tasks.models.accounting import Shape
from tasks.models.find.linears import find_linears
from tasks.train import ready
from tasks.train.cards import CARDS
from tasks.train.cost import FULL, Running, fitting, memory, micro_batch, remedy, seconds
from tasks.train.fake_quantized import fake_quantize, rounded
from tests.bench.bench_gpu_training import SIZES, WORDS
from tests.tasks import models_zoo as zoo

H100, ALL = CARDS["H100"], 10**12


def shape(hidden: int, inner: int, layers: int, words: int = WORDS, queries: int = 1) -> Shape:
    """``queries`` share a key and a value."""
    matrices = layers * (2 * hidden**2 + 2 * hidden**2 // queries + 3 * hidden * inner)
    norms = (2 * layers + 1) * hidden
    return Shape(matrices + 2 * words * hidden + norms, matrices, matrices, layers, hidden, hidden, words)


SHAPES = {name: shape(size.hidden, size.inner, size.layers) for name, size in SIZES.items()}


def running(name: str, **how) -> Running:
    size = SIZES[name]
    return replace(Running(size.length, size.batch, size.batch), **how)


LONG = {"length": 32_768, "local": 1, "micro_batch": 1}
ZERO = {"engine": "deepspeed", "zero": 1}
FOUR = {"engine": "deepspeed", "ranks": 4, "recompute": "layer"}
ON_HOST = {"engine": "deepspeed", "zero": 3, "offload": True, "recompute": "layer", "local": 2, "micro_batch": 1}
EAGER = {"compile": False, "logits_bytes": ALL}
MEASURED = [  # bf16 on one H100, torch 2.11: (size, how, GiB, thousand tokens per second)
    ("162M", {}, 9.4, 385),
    ("162M", ZERO, 9.1, 346),
    ("162M", EAGER, 17.4, 181),
    ("1.3B", {}, 38.6, 68.4),
    ("1.3B", ZERO, 41.9, 65.2),
    ("1.3B", {"recompute": "selective"}, 30.6, 66.5),
    ("1.3B", {"recompute": "layer"}, 19.3, 68.4 / 1.29),
    ("162M", {"recompute": "selective"}, 7.4, 370),
    ("162M", {"recompute": "layer"}, 3.8, 270),
    ("1.3B", EAGER, 52.0, 49.7),
]
# 1.3B compiled, all cards together: (ZeRO stage, cards, recompute, GiB, thousand tokens per second)
SEVERAL = [
    (1, 4, "none", 31.9, 254.8),
    (2, 1, "none", 37.7, 67.0),
    (2, 2, "none", 30.8, 133.6),
    (2, 2, "selective", 24.9, 131.3),
    (2, 2, "layer", 14.4, 104.0),
    (2, 4, "none", 27.4, 270.2),
    (3, 2, "none", 33.9, 121.6),
    (3, 2, "selective", 27.9, 117.6),
    (3, 2, "layer", 14.9, 94.9),
    (3, 4, "none", 28.9, 234.4),
]
# the same under static masks, states on the host: (ZeRO stage, cards, GiB, thousand tokens per second)
ON_HOSTS = [(2, 1, 24.7, 15.7), (2, 2, 24.2, 22.0), (3, 2, 24.9, 24.5)]
EIGHT = shape(4096, 14336, 32, 128_256, queries=4)


@pytest.mark.parametrize(("name", "how", "gibibytes", "rate"), MEASURED)
def test_memory_and_time_are_within_15_percent_of_what_was_measured(name, how, gibibytes, rate):
    planned, size = running(name, **how), SIZES[name]
    assert memory(SHAPES[name], planned) / 2**30 == pytest.approx(gibibytes, rel=0.15)
    assert size.batch * size.length / seconds(SHAPES[name], planned, H100) / 1000 == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(("zero", "ranks", "recompute", "gibibytes", "rate"), SEVERAL)
def test_on_several_cards_too(zero, ranks, recompute, gibibytes, rate):
    how = running("1.3B", engine="deepspeed", zero=zero, ranks=ranks, recompute=recompute)
    assert memory(SHAPES["1.3B"], how) / 2**30 == pytest.approx(gibibytes, rel=0.15)
    assert ranks * 8 * 2048 / seconds(SHAPES["1.3B"], how, H100) / 1000 == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(("zero", "ranks", "gibibytes", "rate"), ON_HOSTS)
def test_with_states_on_the_host_memory_is_as_near_and_time_within_what_hosts_differ_by(zero, ranks, gibibytes, rate):
    how = running("1.3B", engine="deepspeed", zero=zero, ranks=ranks, offload=True, masked=True)
    assert memory(SHAPES["1.3B"], how) / 2**30 == pytest.approx(gibibytes, rel=0.15)
    assert 0.5 < ranks * 8 * 2048 / seconds(SHAPES["1.3B"], how, H100) / 1000 / rate < 2


@pytest.mark.parametrize(("ranks", "gibibytes", "rate"), [(2, 72.5, 6.16), (4, 38.8, 13.79)])
def test_a_model_of_8b_in_pieces_too(ranks, gibibytes, rate):
    how = Running(2048, 1, 1, "deepspeed", 3, ranks, recompute="layer")
    assert memory(EIGHT, how) / 2**30 == pytest.approx(gibibytes, rel=0.15)
    assert remedy(EIGHT, how, H100.memory) is None  # what ran is not refused
    assert ranks * 2048 / seconds(EIGHT, how, H100) / 1000 == pytest.approx(rate, rel=0.15)


def test_a_small_model_is_as_fast_as_its_host_launches_it():
    small, how = shape(192, 512, 4, 2048), Running(128, 32, 32)
    once = seconds(small, how, H100)
    assert 0.005 < once < 0.03 and seconds(small, replace(how, local=64, micro_batch=64), H100) == once
    assert seconds(small, replace(how, micro_batch=16), H100) == 2 * once


@pytest.mark.parametrize(("zero", "rate"), [(0, 78), (1, 88), (2, 91), (3, 61)])
def test_on_two_cards_too_at_every_zero_stage(zero, rate):
    """Both together, not compiled."""
    how = running("1.3B", engine="deepspeed", zero=zero, ranks=2, compile=False)
    assert 2 * 8 * 2048 / seconds(SHAPES["1.3B"], how, H100) / 1000 == pytest.approx(rate, rel=0.15)


def test_ranks_are_advised_among_which_the_batch_divides():
    how = Running(2048, 12, 12, "deepspeed", 2, 1)
    most = memory(EIGHT, replace(how, zero=3, ranks=4, recompute="layer", micro_batch=1)) / FULL
    assert "ranks to 4," in remedy(EIGHT, how, most + 1)
    assert "ranks to 5," in remedy(EIGHT, replace(how, local=5, micro_batch=5), most + 1)
    assert remedy(EIGHT, replace(how, local=3, micro_batch=3), most + 1) == "choose a smaller model, or a larger card"


def test_more_ranks_and_higher_zero_stages_hold_less_and_masks_and_a_teacher_more():
    def of(**how) -> float:
        return memory(EIGHT, Running(2048, 1, 1, engine="deepspeed", **how))

    assert of(zero=3, ranks=8) < of(zero=2, ranks=8) < of(zero=0, ranks=8)
    assert of(zero=3, ranks=8) < of(zero=3, ranks=4) < of(zero=3, ranks=2)
    assert of(zero=1, ranks=2) - of(zero=1, ranks=2, offload=True) == pytest.approx(6 * EIGHT.parameters)  # 12 bytes of a half
    assert of(zero=1, masked=True) > of(zero=1) < of(zero=1, teacher=EIGHT)


class Moved(TorchDispatchMode):
    """The bytes that operations read and write; views move none."""

    total = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        read, written = ([each for each in tree_leaves(one) if torch.is_tensor(each)] for one in ((arguments, named), made))
        places = {each.untyped_storage().data_ptr() for each in read}
        if not any(each.untyped_storage().data_ptr() in places for each in written):
            self.total += sum(each.nbytes for each in (*read, *written))
        return made


@pytest.mark.parametrize("grid", [Grid(4, 128), Grid(3, 32), Grid(4, 64, symmetric=False), Grid(8, None, codes="float")])
def test_a_step_that_trains_for_a_rounding_takes_what_its_grid_moves(grid):
    linear, weight_OI = next(iter(find_linears(zoo.model("llama", layers=1)).values())), torch.randn(512, 1024)
    with Moved() as moved:
        rounded(linear, grid, weight_OI, torch.bfloat16)
    how = running("1.3B", micro_batch=2)  # four forward passes of two sequences
    longer = seconds(SHAPES["1.3B"], replace(how, faked=True), H100) - seconds(SHAPES["1.3B"], how, H100)
    passes = 4 * SHAPES["1.3B"].prunable / (0.75 * H100.bandwidth)
    assert longer / passes == pytest.approx(moved.total / weight_OI.numel(), rel=0.15)
    again = replace(how, recompute="layer")
    twice = seconds(SHAPES["1.3B"], replace(again, faked=True), H100) - seconds(SHAPES["1.3B"], again, H100)
    assert twice == pytest.approx(2 * longer)


@pytest.mark.parametrize("low", [False, True])
def test_and_holds_the_rounded_weights_until_the_backward_pass_has_read_them(low):
    """Counted on what autograd keeps: float32 once more, under autocast nothing but the copies that it makes anyway."""

    def kept(faked: bool) -> int:
        model, found = zoo.model("llama", layers=2), {}
        linears = find_linears(model)
        if faked:
            fake_quantize(model, linears, dict.fromkeys(linears, Grid(4, 16)), dict.fromkeys(linears, torch.float32))
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def keep(value: torch.Tensor) -> torch.Tensor:
            found[value.untyped_storage().data_ptr()] = value  # held, so that no other takes its place
            return value

        tokens_BT = zoo.batches()[0]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), torch.autocast("cpu", enabled=low):
            model(tokens_BT, use_cache=False).logits.sum()
        return sum(value.untyped_storage().nbytes() for place, value in found.items() if place not in weights)

    prunable = sum(linear.shape[0] * linear.shape[1] for linear in find_linears(zoo.model("llama", layers=2)).values())
    small = shape(32, 64, 2)
    how = Running(4096, 8, 8, low=low)  # activations are more than gradients
    more = memory(small, replace(how, faked=True)) - memory(small, how)
    assert kept(True) - kept(False) == (0 if low else 4 * prunable)
    assert more == (0 if low else 4 * small.prunable)


def test_auto_recomputes_where_a_step_would_not_fit_and_nowhere_else():
    how = running("1.3B")
    needed, less = (memory(SHAPES["1.3B"], replace(how, recompute=what)) for what in ("none", "selective"))
    for room, auto in ((needed * 1.01, "none"), (needed * 0.99, "selective"), (less * 0.99, "layer"), (1e9, "layer")):
        assert fitting(SHAPES["1.3B"], how, "auto", room / FULL).recompute == auto
        assert fitting(SHAPES["1.3B"], how, "none", room) == how


@pytest.mark.parametrize(
    ("how", "room", "said"),
    [
        ({}, 80e9, None),
        ({}, 40e9, "set micro_batch to 4"),
        ({}, 25e9, "set micro_batch to 1"),
        (LONG, 60e9, "set recompute to selective"),
        (LONG, 40e9, "set recompute to layer"),
        ({**LONG, "recompute": "selective"}, 40e9, "set recompute to layer"),
        ({}, 15e9, "set engine to deepspeed, zero to 1, offload to optimizer, recompute to layer and micro_batch to 8"),
        ({**FOUR, "zero": 0}, 16e9, "set zero to 2"),  # before states go to the host
        ({**FOUR, "zero": 1}, 10.5e9, "set zero to 2 and micro_batch to 4"),
        (
            {**FOUR, "zero": 1},
            4e9,
            "set engine to deepspeed, zero to 3, offload to optimizer, recompute to layer and micro_batch to 2",
        ),
        (ON_HOST, 7.5e9, "set engine to deepspeed, zero to 3, ranks to 2, recompute to layer and micro_batch to 1"),
        ({"recompute": "layer"}, 1e9, "choose a smaller model, or a larger card"),
    ],
)
def test_the_least_costly_change_that_helps_is_named(how, room, said):
    assert remedy(SHAPES["1.3B"], running("1.3B", **how), room) == said


def test_a_running_is_read_off_what_a_job_is_given():
    execution = Execution(
        ranks=2, micro_batch=3, engine="deepspeed", zero=2, precision="bfloat16", compile=True, recompute="auto"
    )
    how = Running.of(execution, 128, 8, True, None)
    assert (how.local, how.micro_batch, how.low, how.recompute) == (4, 2, True, "none") and micro_batch(8, execution) == 2


def test_a_job_decides_auto_by_its_own_card_and_tells_where_it_changes_anything(tmp_path, monkeypatch):
    told: list = []
    execution = Execution(device="cuda", precision="bfloat16", compile=True, recompute="auto")
    context = Context({}, tmp_path, tmp_path, execution, told.append)
    for room, again in ((80e9, "none"), (40e9, "selective"), (25e9, "layer")):
        monkeypatch.setattr(ready, "memory_of", lambda device, room=room: room)
        assert ready.decided(context, SHAPES["1.3B"], running("1.3B")).recompute == again
    assert [note.text for note in told] == [
        "the backward pass runs each layer again but for matrix products and attention; without that a step takes 42 GB of 40",
        "the backward pass runs each layer again; without that a step takes 42 GB of 25",
    ]
    elsewhere = Context({}, tmp_path, tmp_path, Execution(recompute="auto"))
    assert ready.decided(elsewhere, SHAPES["1.3B"], running("1.3B")) == running("1.3B")
