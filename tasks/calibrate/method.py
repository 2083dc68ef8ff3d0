"""The root of calibrated methods: each is given one block and returns edits of its matrices.

A method enters at the shallowest depth that suffices: ``score`` a matrix, or ``solve_linear`` one, or ``solve`` the
whole block. It returns edits and assigns nothing; :func:`tasks.calibrate.walk.walk` does, after :meth:`check`. A fused
stack of experts reaches a method as single matrices, so every matrix here is [O, I].

Shapes: O = output features, I = input features, B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch

from tasks.calibrate.solvers.finite import all_finite
from tasks.methods import Method

if TYPE_CHECKING:
    from tasks.calibrate.observe import InputStatistic, Statistic
    from tasks.calibrate.report import WalkReport
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear
    from tasks.models.stream.activations import OffloadedTensors


@dataclass(frozen=True)
class Edit:
    """The new values and mask of one matrix, or of any other parameter; for a module, only extras.

    ``weight_OI`` None leaves the values as they are, ``keep_OI`` None the mask, if it has one. ``extras`` are stored beside
    the model, ``notes`` go to the report. ``promise`` is the pattern and sparsity of the mask where they are not those the
    walk asked for; ``follows`` says that the mask follows from another matrix's, so no sparsity was asked of it."""

    weight_OI: torch.Tensor | None = None
    keep_OI: torch.Tensor | None = None
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)
    promise: tuple[Pattern, float] | None = None
    follows: bool = False


class Run(Protocol):
    def __call__(self, first: int | None = None, /) -> Iterator[torch.Tensor]:
        """The outputs of a block as it is now on the ``first`` batches, or on all."""


@dataclass
class BlockView:
    """One block as a method sees it. All dictionaries are by matrix name; nothing in here may be changed in place.

    ``prefix`` is what the names of its parameters and modules begin with. ``matrices`` are in the dtype they are stored in.
    ``keep`` has the masks the model came with. ``statistics`` are the observers' sums over the still-dense block, fed by the
    compressed blocks before it; ``outputs`` are those over what modules returned, by module name, where a token reached one.
    ``run`` gives the block's outputs batch by batch, ``inputs`` are its hidden states; few
    methods need more than the matrices.
    """

    index: int
    prefix: str
    linears: dict[str, Linear]
    matrices: dict[str, torch.Tensor]
    keep: dict[str, torch.Tensor]
    statistics: dict[str, InputStatistic]
    outputs: dict[str, Statistic]
    allocation: dict[str, float]
    pattern: Pattern
    module: torch.nn.Module
    inputs: OffloadedTensors
    run: Run

    def each(self, solve_one: Callable[[str], Edit], names: Collection[str] | None = None) -> dict[str, Edit]:
        """One edit per matrix, or per one of ``names``, solved side by side; an error names the matrix."""
        from tasks.calibrate.parallel import side_by_side

        chosen = self.matrices if names is None else {name: self.matrices[name] for name in self.matrices if name in names}
        return side_by_side(solve_one, chosen, self.statistics)


class BlockMethod(Method):
    """Root of everything the walker runs. One whose matrices are solved ``apart``, each by its own values, statistic, mask and
    sparsity alone, and long enough to be worth sending them, is shared out to the workers of a walk."""

    paper: ClassVar[str] = ""
    apart: ClassVar[bool] = False

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        """Raise ValueError, before any work, when the method cannot treat one of a model's linears."""

    def observer(self, linear: Linear) -> InputStatistic | None:
        """A new observer of the inputs of one matrix of ``linear``; None when the method needs no data."""
        return None

    def output_observer(self, name: str, module: torch.nn.Module) -> Statistic | None:
        """A new observer of what a module of a block returns, or of the first of it; ``name`` is the module's own within
        the block, as self_attn.k_proj. None where nobody wants to know."""
        return None

    def observes(self, linears: Mapping[str, Linear], blocks: Iterable[torch.nn.Module]) -> bool:
        """Whether it needs calibration data of such linears and blocks."""
        modules = (pair for block in blocks for pair in block.named_modules())
        return any(self.observer(linear) is not None for linear in linears.values()) or any(
            self.output_observer(name, module) is not None for name, module in modules
        )

    def solve(self, view: BlockView) -> dict[str, Edit]:
        """Edits by matrix name. A name of any other parameter of the block is an edit of it as it is stored, and extras may
        be given of any parameter or module of the block."""
        raise NotImplementedError

    def remarks(self, report: WalkReport) -> list[str]:
        """What people have to be told of a walk."""
        return []

    def check(self, view: BlockView, edits: Mapping[str, Edit]) -> None:
        """Raise BrokenMask when an edit breaks a promise."""
        from tasks.formats.mask import BrokenMask

        for name, edit in edits.items():
            keep_OI, before_OI = edit.keep_OI, view.keep.get(name)
            if odd := [key for key, value in edit.extras.items() if not all_finite(value)]:
                raise ValueError(f"{self.name} left {odd[0]} of {name} that is not finite")
            if edit.weight_OI is None:
                assert keep_OI is None, f"{name}: a mask comes with the weights it leaves"
                continue
            if not all_finite(edit.weight_OI):
                raise ValueError(f"{self.name} made weights of {name} that are not finite")
            if name not in view.matrices:
                continue
            if edit.weight_OI.shape != view.matrices[name].shape:
                raise BrokenMask(name, f"{self.name} changed its shape to {list(edit.weight_OI.shape)}")
            if keep_OI is None:
                keep_OI = before_OI
            if keep_OI is not None and bool(edit.weight_OI.masked_fill(keep_OI, 0).any()):
                raise BrokenMask(name, f"{self.name} left dead weights that are not zero")
            if keep_OI is not None and before_OI is not None and bool((keep_OI & ~before_OI).any()):
                raise BrokenMask(name, f"{self.name} revived dead weights")


def select(
    score_OI: torch.Tensor, sparsity: float, pattern: Pattern, keep_OI: torch.Tensor | None = None, first_column: int = 0
) -> torch.Tensor:
    """The mask a pattern selects by a score. ``keep_OI`` is the mask so far: what is dead there stays dead."""
    if bool(score_OI.isnan().any()):
        raise ValueError("a score is not a number")
    if keep_OI is None:
        return pattern.keep(score_OI, sparsity, first_column)
    return keep_OI & pattern.keep(score_OI.masked_fill(~keep_OI, pattern.dead_score), sparsity, first_column)


class Pruner(BlockMethod):
    """Decides which weights live.

    ``scope`` is what an unstructured pattern ranks together: each row, or the whole matrix. ``patterns`` are the kinds
    of pattern the method can keep; ``allocator`` allocates the sparsity where the recipe names none. ``takes_masks``
    says whether the model may have been pruned before.
    """

    scope: ClassVar[Literal["row", "layer"]]
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "N:M", "block", "group", "channel", "neuron")
    takes_masks: ClassVar[bool] = True

    @property
    def allocator(self) -> str:
        return "uniform"

    def suit(self, pattern: Pattern) -> None:
        """Raise ValueError when the method makes no sense with a pattern."""
        if pattern.kind not in self.patterns:
            raise ValueError(f"{self.name} cannot keep pattern {pattern}; choose one of {', '.join(self.patterns)}")

    def choices(self, pattern: Pattern, widths: Mapping[str, int], heads: int | None) -> dict[str, int]:
        """How many units there are to prune, by what they are, as far as widths and heads tell before anything runs."""
        return {f"units of {pattern} in {name} {width}": pattern.units(width, width) for name, width in widths.items()}

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        self.suit(pattern)
        for name, linear in linears.items():
            try:
                pattern.check(allocation[name], linear.shape[-1], linear.shape[-2])
            except ValueError as error:
                raise ValueError(f"{error} ({name})") from None

    def score(self, weight_OI: torch.Tensor, statistics: InputStatistic | None) -> torch.Tensor:
        """The importance of each weight; never negative."""
        raise NotImplementedError

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        sparsity: float,
        pattern: Pattern,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        """Prune one matrix. ``keep_OI`` is the mask it came with: what is dead there stays dead."""
        chosen_OI = select(self.score(weight_OI, statistics), sparsity, pattern, keep_OI)
        return Edit(weight_OI.masked_fill(~chosen_OI, 0), chosen_OI)

    def solve(self, view: BlockView) -> dict[str, Edit]:
        def solve_one(name: str) -> Edit:
            return self.solve_linear(
                view.matrices[name], view.statistics.get(name), view.allocation[name], view.pattern, view.keep.get(name)
            )

        return view.each(solve_one)

    def check(self, view: BlockView, edits: Mapping[str, Edit]) -> None:
        super().check(view, edits)
        check_promises(self.name, view, edits)


def check_promises(method: str, view: BlockView, edits: Mapping[str, Edit]) -> None:
    """Raise BrokenMask where a mask does not keep the pattern at the sparsity that was asked for, or that its edit promises."""
    from tasks.formats.mask import BrokenMask

    for name in view.matrices:
        keep_OI = edits[name].keep_OI if name in edits else None
        pattern, sparsity = (edits[name].promise if name in edits else None) or (view.pattern, view.allocation[name])
        if keep_OI is None and sparsity == 0:
            continue
        if keep_OI is None:
            raise BrokenMask(name, f"{method} gave it no mask")
        if not pattern.holds(keep_OI, sparsity):
            if name in view.keep:
                raise ValueError(
                    f"{name} has a mask already, and what it left alive cannot be {pattern} at sparsity "
                    f"{sparsity:g}; choose unstructured or N:M, or prune the dense model"
                )
            raise BrokenMask(name, f"{method} broke {pattern} at sparsity {sparsity:g}")
