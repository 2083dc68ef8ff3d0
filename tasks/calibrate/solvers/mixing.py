"""Which depth and which widths a model gives up under one budget: an integer program, solved by HiGHS.

A shape is how many blocks stay, and how wide each is. Its price is affine in the depth, base + depth * block, and a block is
priced by the parts of it, its network and its attention, so that few models need be priced. What a shape loses is the sum of
what its parts lose alone: of each block that goes, and of each width. That they add up is assumed, not measured. Where the text
shows a gain it is taken for none, and of shapes that lose the same the dearest is taken: nothing goes without need.

Shapes: L = blocks, S = shapes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.models.cut import Cut

Width = tuple[int, int]  # channels and groups of heads of a block
Price = Callable[["Shape"], float]
ROUNDS = 5
TIE = 1e-5  # nats that the whole budget counts for


@dataclass(frozen=True)
class Shape:
    depth: int
    channels: int
    groups: int


def prices(
    whole: Shape, depths: Sequence[int], channels: Sequence[int], groups: Sequence[int], price: Price
) -> dict[Shape, float]:
    """Of every shape, from models of full depth and of one block in each width of either kind."""

    def block(width: Width) -> float:
        return (price(Shape(whole.depth, *width)) - price(Shape(1, *width))) / (whole.depth - 1)

    full = (whole.channels, whole.groups)
    networks = {count: block((count, whole.groups)) for count in {*channels, whole.channels}}
    attentions = {count: block((whole.channels, count)) for count in {*groups, whole.groups}}
    base = price(Shape(1, *full)) - networks[whole.channels]
    return {
        Shape(depth, channel, group): base + depth * (networks[channel] + attentions[group] - networks[whole.channels])
        for depth, channel, group in product(depths, channels, groups)
    }


def solve(
    priced: Mapping[Shape, float], budget: float, depth: int, by_block: Sequence[float], by_width: Callable[[Shape], float]
) -> tuple[Shape, list[int]]:
    """The shape that loses least of those that cost no more than ``budget``, and the blocks that go. ``by_block`` is what is
    lost with each block of ``depth``, ``by_width`` with the widths of a shape. Raises ValueError where none is so cheap.

    Minimises by_block . x + by_width . y over binary x [L], which blocks go, and y [S], of which one is chosen."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    shapes = list(priced)
    costs = np.array([priced[shape] for shape in shapes])
    if not (costs <= budget).any():
        raise ValueError(f"no shape costs so little: the cheapest is {costs.min():.4g}, and {budget:.4g} is left")
    lost = np.maximum(0, [*by_block, *map(by_width, shapes)])
    lost[depth:] -= TIE * costs / budget
    chosen = np.array([0.0] * depth + [1.0] * len(shapes))
    spent = np.array([0.0] * depth + [*(costs / budget)])
    blocks = np.array([1.0] * depth + [float(shape.depth) for shape in shapes])  # those that go and those that stay
    limits = [LinearConstraint(chosen, 1, 1), LinearConstraint(spent, -np.inf, 1), LinearConstraint(blocks, depth, depth)]
    exact = {"mip_rel_gap": 0.0}
    found = milp(lost, constraints=limits, integrality=np.ones(len(lost)), bounds=Bounds(0, 1), options=exact)
    assert found.success, found.message
    taken = found.x.round().astype(bool)
    return shapes[int(taken[depth:].argmax())], [int(index) for index in taken[:depth].nonzero()[0]]


def left_of(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """The skeleton of what a cut leaves of a model."""
    from tasks.models.files.checkpoint import skeleton_of
    from tasks.models.files.recut import config_of

    return skeleton_of(type(model.config).from_dict(config_of(model.config.to_dict(), model, cut)))


def possible(model: PreTrainedModel, cut: Cut) -> bool:
    """Whether transformers has a model of these sizes, as it has none whose heads do not divide its hidden features."""
    from tasks.models.files.recut import check_sizes

    try:
        check_sizes(model, cut)
    except ValueError:
        return False
    return True


def parameters(model: PreTrainedModel) -> float:
    return sum(parameter.numel() for parameter in model.parameters())


def kv_values(model: PreTrainedModel) -> float:
    """Keys and values that a token leaves in the cache of a model."""
    text = model.config.get_text_config(decoder=True)
    groups = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * groups * width


@torch.no_grad()
def latency(model: PreTrainedModel, dtype: torch.dtype, tokens_BT: torch.Tensor) -> float:
    """Seconds in which a model of these sizes reads some tokens, median of a few times, on the device of the tokens."""
    from tasks.models.build.building import builder

    random = builder(model.config).from_config(model.config, dtype=dtype).to(tokens_BT.device).eval()
    seconds = []
    for _ in range(1 + ROUNDS):
        begun = time.perf_counter()
        random(input_ids=tokens_BT, use_cache=False)
        if tokens_BT.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])
