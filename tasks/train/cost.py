"""What a step of training takes of a machine before it runs: the memory of a rank, and on a known card its time.

The formulas are those of a decoder's shape; their factors are fitted to runs that were measured, which
tests/tasks/train/test_cost.py has. Bytes of one rank, at whichever of two moments holds more: where the backward pass begins,
with the activations of all layers and what the loss holds, or where it ends, with all gradients and one layer's activations.
Seconds are those of the products, at a share of the card's peak, and of the memory that everything else moves; or, of a small
model, those in which the host launches it all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

from tasks.train.cards import Card

if TYPE_CHECKING:
    from tasks.context import Execution
    from tasks.models.accounting import Shape

Recompute = Literal["none", "selective", "layer"]  # the least time first
FULL = 0.92  # of a card's memory: the rest is the driver's, the communication's and what lies between tensors
MOST = 64  # ranks that are advised
_PRODUCTS = 0.89  # of the peak, where nothing but products were computed
_BANDWIDTH = 0.75  # of the card's
_MOVED = {True: 380.0, False: 1000.0}  # bytes per token, layer and feature in a step: compiled, eager
_MOVED_AGAIN = {True: 1.13, False: 4 / 3}  # selective: compiled 50 bytes of those, in the kernels of the backward pass
_OPTIMIZER = {"torch": 34.0, "deepspeed": 74.0}  # bytes per parameter in a step
_LAUNCHED = 3e-3  # seconds in which a host launches a layer's passes: 12 layers took one 42 ms at best, 52 beside other work
_PCIE, _HOST = 50e9, 30e9  # bytes a second to the host, and of its memory in an update: 55 on one, 16 and 19 on another
_LINK = 155e9  # bytes a second between two GPUs
_ROUNDED = 100.0  # bytes per weight and forward pass that a grid moves to round it to bfloat16; timed: 101 and 127
_GATHERED = {True: 1.08, False: 1.45}  # times as long under ZeRO-3: compiled, eager blocks wait for their parameters


@dataclass(frozen=True)
class Machine:
    """What a forecast is for: how the profile runs a stage, the card where it names one, the model that is learned from."""

    execution: Execution
    card: Card | None = None
    teacher: Shape | None = None

    def expected(self, shape: Shape, how: Running, tokens: int) -> dict[str, float]:
        """Of training on ``tokens`` tokens: ``memory_bytes`` of a rank, and on a known card speed of all ranks and hours."""
        if self.card is None:
            return {"memory_bytes": memory(shape, how)}
        how = fitting(shape, how, self.execution.recompute, self.card.memory)
        speed = how.ranks * how.local * how.length / seconds(shape, how, self.card)
        return {"memory_bytes": memory(shape, how), "tokens_per_second": speed, "hours": tokens / speed / 3600}


@dataclass(frozen=True)
class Running:
    """How a step runs: the fields of a profile, with everything ``auto`` decided, and what the stage asks for."""

    length: int
    local: int  # sequences of a rank's step
    micro_batch: int  # of them, at once
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = 0
    ranks: int = 1
    low: bool = True  # computes in bfloat16
    compile: bool = True
    recompute: Recompute = "none"
    logits_bytes: int = 1 << 30
    masked: bool = False
    teacher: Shape | None = None
    offload: bool = False  # masters and moments lie on the host
    faked: bool = False  # every forward pass rounds the weights to a grid

    @classmethod
    def of(cls, execution: Execution, length: int, batch: int, masked: bool, teacher: Shape | None) -> Running:
        """A stage's step of ``batch`` sequences; what is to be recomputed is not decided yet where it says ``auto``."""
        return cls(
            length,
            batch // execution.ranks,
            micro_batch(batch, execution),
            execution.engine,
            execution.zero,
            execution.ranks,
            execution.precision == "bfloat16",
            execution.compile,
            "none" if execution.recompute == "auto" else execution.recompute,
            execution.logits_bytes,
            masked,
            teacher,
            execution.offload == "optimizer",
        )

    @property
    def tokens(self) -> int:
        """Of a forward pass."""
        return self.micro_batch * self.length

    @property
    def twice(self) -> bool:
        """Whether what goes around a layer's forward pass (weights gathered, or rounded) happens in the backward pass again:
        what is compiled computes selectively inside of itself."""
        return self.recompute == "layer" or (self.recompute == "selective" and not self.compile)


def micro_batch(batch: int, execution: Execution) -> int:
    """Sequences per forward pass on one rank: the profile's, lowered to divide the rank's part of the batch."""
    local = batch // execution.ranks
    wanted = min(execution.micro_batch or local, local)
    return next((size for size in range(wanted, 0, -1) if local % size == 0), 1)


def check_share(batch: int, execution: Execution) -> None:
    """Raise ValueError unless the ranks can share steps of ``batch`` sequences."""
    ranks = execution.ranks
    if batch % ranks:
        near = max(count for count in range(1, min(batch, ranks) + 1) if batch % count == 0)
        raise ValueError(f"batch {batch} does not divide among {ranks} ranks; choose {near} ranks, or another batch")
    if execution.engine == "torch" and ranks > 1:
        raise ValueError(f"engine torch runs on one rank, not on {ranks}; choose engine deepspeed, or 1 rank")


def memory(shape: Shape, how: Running) -> float:
    """The most bytes a rank holds."""
    held = _states(shape, how) + (2 if how.low else 4) * (how.teacher.parameters if how.teacher else 0)
    one = _activations(shape, how) / max(1, shape.layers)
    again = {"none": 0.0, "selective": _selected(shape, how), "layer": _inputs(shape, how)}[how.recompute]
    kept = shape.layers * one if how.recompute == "none" else again + one
    return held + max(kept + _loss(shape, how), _gradients(shape, how) + one)


def _states(shape: Shape, how: Running) -> float:
    """Weights, masters, moments, masks: what is there between two steps."""
    cut = how.ranks if how.zero else 1
    masks = shape.prunable / cut if how.masked else 0.0
    if how.engine == "torch":
        return 12 * shape.parameters + masks
    own = 16 if how.low or how.zero else 8  # master, moments, and gradients in float32
    own, masks = (4, 0.0) if how.offload else (own, masks)
    copy = 2 if how.low else 4  # what the forward pass reads; under ZeRO-3 a few layers are whole at a time
    whole = shape.parameters if how.zero < 3 else shape.parameters / how.ranks + 2 * shape.prunable / max(1, shape.layers)
    return own * shape.parameters / cut + copy * whole + masks


def _gradients(shape: Shape, how: Running) -> float:
    """At the end of a backward pass, beside the states."""
    if how.engine == "torch":
        return 4 * shape.parameters
    return (2 if how.low else 4) * shape.parameters if how.zero < 2 else 0.0


def _residual(how: Running) -> int:
    """Bytes of a feature between two layers: autocast leaves it in float32, a model in bfloat16 does not."""
    return 2 if how.low and how.engine == "deepspeed" else 4


def _activations(shape: Shape, how: Running) -> float:
    """What all layers keep for the backward pass that computes nothing again: what enters and leaves the products, the
    residual stream, and, where weights are rounded for each pass, the rounded ones."""
    products, rest = (2.0, 4.0) if how.compile else (2.5, 20.0)
    products, rest = (products, rest) if how.low else (2 * products, 2 * rest)
    each = products * shape.active / shape.hidden + shape.layers * shape.hidden * (rest + 2 * _residual(how))
    return how.tokens * each + _rounded(shape, how)


def _rounded(shape: Shape, how: Running) -> float:
    """Autocast rounds weights to bfloat16, a grid to values that the products keep in their own dtype."""
    if how.low and (how.engine == "torch" or how.faked):
        return 2.0 * shape.prunable
    return 4.0 * shape.prunable if how.faked else 0.0


def _inputs(shape: Shape, how: Running) -> float:
    """Of all layers."""
    return how.tokens * shape.hidden * shape.layers * _residual(how)


def _selected(shape: Shape, how: Running) -> float:
    """Of all layers: their inputs and the outputs of products and attention, counted by tests/tasks/train/test_recomputed.py;
    compiled, without what nothing needs (a layer's last product). A grid's weights that enter compiled code stay too."""
    products = (1.65 if how.compile else 1.75) * (1 if how.low else 2)
    weights = _rounded(shape, how) if how.faked and not how.twice else 0.0
    return _inputs(shape, how) + how.tokens * products * shape.active / shape.hidden + weights


def _loss(shape: Shape, how: Running) -> float:
    """Logits, their gradients, and where they come in chunks the head's own gradient."""
    logits = 4 * how.tokens * shape.vocabulary
    at_once = min(logits, how.logits_bytes) * (1 if how.compile else 3) * (2 if how.teacher else 1)
    chunked = 4 * shape.vocabulary * shape.hidden + 4 * how.tokens * shape.hidden
    return at_once + (chunked if logits > how.logits_bytes else 0)


def seconds(shape: Shape, how: Running, card: Card) -> float:
    """Of one step."""
    tokens = how.local * how.length
    again = 4 / 3 if how.recompute == "layer" else 1.0  # of products
    moving = _MOVED_AGAIN[how.compile] if how.recompute == "selective" else again
    speed, rate = card.flops * (_PRODUCTS if how.low else _PRODUCTS / 16), card.bandwidth * _BANDWIDTH
    products = again * shape.training_flops(tokens, how.length) / speed
    moved = moving * _MOVED[how.compile] * (1 if how.low else 2) * tokens * shape.layers * shape.hidden / rate
    cut = how.ranks if how.zero else 1
    updated = _OPTIMIZER[how.engine] * shape.parameters / cut / rate
    if how.offload:
        updated = ((6 if how.low else 8) / _PCIE + 28 / _HOST) * shape.parameters / cut  # gradients there, weights back
    if how.teacher:
        products += how.teacher.forward_flops(how.length) * tokens / speed
        moved += moved / moving / 3
    if how.faked:
        passes = how.local / how.micro_batch * (2 if how.twice else 1)
        moved += _ROUNDED * shape.prunable * passes / rate
    regathered = 2 if how.zero == 3 and how.twice else 0  # bytes a parameter, for layers that run again
    sent = (regathered + (8 if how.zero in (0, 3) else 2)) * shape.parameters / _LINK * (how.ranks - 1) / how.ranks
    waits = _GATHERED[how.compile] if how.zero == 3 and how.ranks > 1 else 1.0
    launched = _LAUNCHED * shape.layers * how.local / how.micro_batch  # a small model's card waits for its host
    return max((products + moved) * waits + updated + sent, launched)


def fitting(shape: Shape, how: Running, recompute: str, room: float) -> Running:
    """The same, with ``recompute: auto`` decided: as little is computed twice as lets it fit."""
    if recompute != "auto":
        return how
    tried = [replace(how, recompute=what) for what in get_args(Recompute)]
    return next((each for each in tried if memory(shape, each) <= FULL * room), tried[-1])


def remedy(shape: Shape, how: Running, room: float) -> str | None:
    """What to change of a profile so that a step fits into so many bytes, the least costly change first; None where it does."""

    def fits(**changes: Any) -> bool:
        return memory(shape, replace(how, **changes)) <= FULL * room

    if fits():
        return None
    sizes = [size for size in range(how.micro_batch, 0, -1) if size == how.micro_batch or how.local % size == 0]
    more = get_args(Recompute)[get_args(Recompute).index(how.recompute) :]
    zeros = [how.zero, *(zero for zero in (2, 3) if zero > how.zero and how.ranks > 1)]  # costs a tenth at most
    for zero, what, size in product(zeros, more, sizes):
        if fits(**(changes := {"zero": zero, "recompute": what, "micro_batch": size})):
            return _set(**{field: value for field, value in changes.items() if value != getattr(how, field)})
    for zero, size in product([max(1, zero) for zero in zeros] if not how.offload else (), sizes):
        if fits(engine="deepspeed", zero=zero, offload=True, recompute="layer", micro_batch=size):
            return _set(engine="deepspeed", zero=zero, offload="optimizer", recompute="layer", micro_batch=size)
    for ranks in filter(lambda count: how.local * how.ranks % count == 0, range(max(2, how.ranks), MOST + 1)):
        if fits(engine="deepspeed", zero=3, ranks=ranks, recompute="layer", micro_batch=1):
            return _set(engine="deepspeed", zero=3, ranks=ranks, recompute="layer", micro_batch=1)
    return "choose a smaller model, or a larger card"


def _set(**changes: Any) -> str:
    said = " and ".join(f"{field} to {value}" for field, value in changes.items())
    return "set " + said.replace(" and ", ", ", len(changes) - 2)
