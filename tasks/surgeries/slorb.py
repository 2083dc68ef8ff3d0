"""SLoRB: beside each sparse matrix a small dense one that multiplies sums of consecutive inputs, as AST trains it.

It stays a branch of its own: added to the matrix it would fill the zeros. So sizes and speeds count both, a model that has it
loads here alone, and an export adds it up all the same, to a dense model that computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tasks.models.build.surgery import Surgery

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from tasks.models.find.linears import Linear


class Slorb(Surgery):
    paper: ClassVar[str] = "AST (arXiv 2407.20584)"
    undone: ClassVar[str] = (
        "Its sparse matrices have small dense ones beside them (SLoRB), which are added to them here: these weights are dense, "
        "and sizes and\nspeeds below are those of Winnow's own artifact."
    )
    unpacked: ClassVar[str] = (
        "its sparse matrices have dense ones beside them, and no other program loads such a model; recover with "
        "ast: {slorb: null} before quantizing"
    )

    group: int = Field(16, gt=0)
    """Consecutive inputs that are added up."""
    location: Literal["ffn", "all"] = "all"
    """Which matrices have one: those of the feed-forward networks, or all."""

    def check_linear(self, linear: Linear) -> None:
        if len(linear.shape) == 3:
            raise ValueError(f"unsupported: slorb adds to single matrices, and {linear.name} is a fused stack of experts")
        if linear.shape[1] % self.group:
            raise ValueError(f"slorb {self.group} does not divide the input width {linear.shape[1]}; choose a divisor of it")

    def served(self, model: PreTrainedModel) -> dict[str, Linear]:
        """The linears that have one."""
        from tasks.models.find.linears import find_linears

        return {name: linear for name, linear in find_linears(model).items() if self.location == "all" or linear.feed_forward}

    def apply(self, model: PreTrainedModel) -> None:
        from tasks.models.build.sums import add_sums

        for linear in self.served(model).values():
            self.check_linear(linear)
            add_sums(model, linear, self.group)

    def undo(
        self, model: PreTrainedModel, before: PreTrainedModel, read: Callable[[str], Tensor]
    ) -> dict[str, Callable[[Tensor], Tensor | None]]:
        """Add up, which no mask outlives."""
        from tasks.models.build.sums import place_of

        changes: dict[str, Callable[[Tensor], Tensor | None]] = {}
        for name, linear in self.served(model).items():
            changes[place_of(linear)] = lambda branch: None
            changes[name] = partial(_filled, linear=linear, group=self.group, read=read)
        return changes


def _filled(stored: Tensor, linear: Linear, group: int, read: Callable[[str], Tensor]) -> Tensor | None:
    import torch

    from tasks.models.build.sums import place_of, spread

    if stored.dtype == torch.bool:
        return None
    added = spread(read(place_of(linear)).float(), group)
    return linear.stored(linear.matrix(stored.float()) + added).to(stored.dtype)
