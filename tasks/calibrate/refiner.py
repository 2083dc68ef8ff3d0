"""Pruners built on another pruner: they refine its mask, or change its input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from tasks.calibrate.method import Pruner
from tasks.methods import of

if TYPE_CHECKING:
    from tasks.formats.pattern import Pattern


class Refiner(Pruner):
    """A pruner on top of another, whose ranking and allocator it takes over."""

    initial: Annotated[Pruner, of("pruners")] = Field("wanda", validate_default=True)
    """The pruner whose mask is refined."""

    @field_validator("initial")
    @classmethod
    def _plain(cls, initial: Pruner) -> Pruner:
        if isinstance(initial, Refiner):
            raise ValueError(f"{initial.name} refines a mask itself; choose a pruner that makes one")
        return initial

    @property
    def scope(self) -> Literal["row", "layer"]:  # type: ignore[override]  # a field or a constant elsewhere
        return self.initial.scope

    @property
    def allocator(self) -> str:
        return self.initial.allocator

    def suit(self, pattern: Pattern) -> None:
        super().suit(pattern)
        self.initial.suit(pattern)
