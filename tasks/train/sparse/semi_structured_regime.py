"""The roots of the regimes that train towards N:M: the pattern, the matrices, the phases of a run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.train.regime import Outcome, Regime, Setting

if TYPE_CHECKING:
    from tasks.formats.pattern import NM
    from tasks.models.find.linears import Linear
    from tasks.train.hook import Hook
    from tasks.train.sparse.semi_structured import Flow, Phase


def treated(setting: Setting, regime: Regime) -> dict[str, Linear]:
    """The linears that a regime treats."""
    return {name: linear for name, linear in setting.linears.items() if regime.treats(linear)}


class NMRegime(Regime):
    """Keeps N of every M consecutive inputs. A share ``dense`` of the run comes before the first mask, and in the last
    share ``hard`` the pattern is exact whatever came before."""

    masks: ClassVar[Outcome] = "narrowed"

    pattern: str = "2:4"
    """N:M: how many of every M consecutive inputs are kept."""
    location: Literal["ffn", "all"] = "all"
    """Which matrices are sparse: those of the feed-forward networks, or all."""
    dense: float = Field(0.0, ge=0, lt=1)
    """Share of the run before the first mask."""
    hard: float = Field(0.0, ge=0, lt=1)
    """Share of the run, at its end, in which the pattern is exact."""

    @model_validator(mode="after")
    def _phases(self) -> NMRegime:
        self.nm()
        if self.dense + self.hard >= 1:
            raise ValueError(f"dense and hard must leave room between them, got {self.dense:g} and {self.hard:g}")
        return self

    def nm(self) -> NM:
        """The pattern the run ends in."""
        from tasks.formats.pattern import NM, parse_pattern

        pattern = parse_pattern(self.pattern)
        if not isinstance(pattern, NM):
            raise ValueError(f"pattern is N:M (like 2:4) in this method, got {self.pattern}")
        return pattern

    def promise(self) -> str:
        return str(self.nm())

    def treats(self, linear: Linear) -> bool:
        return self.location == "all" or linear.feed_forward

    def check_width(self, width: int) -> None:
        self.nm().check(self.nm().sparsity, width)

    def between(self, step: int, steps: int) -> Phase:
        """What holds at ``step`` of the ``steps`` between the dense and the hard phase."""
        from tasks.train.sparse.semi_structured import Phase

        return Phase(self.nm())

    def phase(self, step: int, total: int) -> Phase | None:
        """What holds at a step of a run of ``total``; None while it is dense."""
        from tasks.train.sparse.semi_structured import Phase

        first, last = round(self.dense * total), total - round(self.hard * total)
        if step < first:
            return None
        return Phase(self.nm()) if step >= last else self.between(step - first, last - first)

    def flow(self) -> Flow:
        """What flows back to the weights outside the mask, as arguments of ``SemiStructured``."""
        return {}

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.sparse.semi_structured import SemiStructured

        phase = partial(self.phase, total=setting.steps)
        return [SemiStructured(setting.linears, setting.masks, treated(setting, self), phase, **self.flow())]


class TwoOfFourRegime(Regime):
    """Multiplies 2:4 in the feed-forward networks, in all three products where hardware may."""

    mvue: bool = True
    """Estimate the gradients of the outputs 2:4 sparsely, without bias and with the least variance."""

    def promise(self) -> str:
        return "2:4"

    def treats(self, linear: Linear) -> bool:
        return linear.feed_forward

    def check_width(self, width: int) -> None:
        from tasks.train.sparse.two_of_four import PATTERN

        PATTERN.check(PATTERN.sparsity, width)


class DecayingRegime(NMRegime):
    """Weights outside the mask fade instead of being cut: they count for a share that falls from 1 to 0.

    ``backward``: ``ste`` passes their gradient whole, as the authors' code does, ``decay`` scales it like the weight.
    """

    location: Literal["ffn", "all"] = "ffn"
    """Which matrices are sparse: those of the feed-forward networks, or all."""
    hard: float = Field(0.1, ge=0, lt=1)
    """Share of the run, at its end, in which the pattern is exact."""
    rate: float | None = Field(None, gt=0)
    """How fast weights outside the mask fade, per step; without one they are gone when the hard phase begins."""
    backward: Literal["ste", "decay"] = "ste"
    """Gradient of weights outside the mask: whole (``ste``, as the authors' code), or scaled like the weight (``decay``)."""

    def share(self, step: int, steps: int) -> float:
        """What weights outside the mask count for."""
        raise NotImplementedError

    def between(self, step: int, steps: int) -> Phase:
        from tasks.train.sparse.semi_structured import Phase

        return Phase(self.nm(), self.share(step, steps))

    def flow(self) -> Flow:
        return {"straight": self.backward == "ste"}
