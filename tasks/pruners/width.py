"""Width: take channels, groups of heads and hidden features of a model, as many of each in every block.

What is ranked is the mean length of activations over the calibration text, after Minitron: of a channel what the last
matrix of its network reads, of a group what the output matrix reads of its heads, of a hidden feature what queries and
feed-forward networks read of it, over all blocks. Channels and groups are others in each block, hidden features the same
everywhere, since what flows past the blocks is one. A group is the heads that share keys and values, so that their ratio
stays; without sharing it is a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tasks.calibrate.resizer import Resizer, each_once, remaining

if TYPE_CHECKING:
    import torch

    from tasks.calibrate.whole import Whole
    from tasks.models.cut import Cut

Axis = Literal["channels", "groups", "hidden"]
CALLED: dict[Axis, str] = {"channels": "channels", "groups": "groups of heads", "hidden": "hidden features"}


class Width(Resizer):
    """The sparsity is the share of each of the ``axes``."""

    paper: ClassVar[str] = "Compact Language Models via Pruning and Knowledge Distillation (arXiv 2407.14679)"

    axes: Annotated[tuple[Axis, ...], AfterValidator(each_once)] = Field(("channels",), min_length=1)
    """What becomes less: channels of feed-forward networks, groups of heads, hidden features."""
    multiple: int = Field(1, ge=1)
    """Channels and hidden features left are multiples of this."""

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        import torch

        left = {axis: torch.arange(count) for axis, count in self._left(whole, sparsity).items()}
        return self._cut({axis: [kept] * (1 if axis == "hidden" else whole.depth) for axis, kept in left.items()}, {})

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        left = self._left(whole, sparsity)
        lengths = {axis: getattr(self, f"_{axis}")(whole) for axis in self.axes}
        kept = {axis: [_longest(one, left[axis]) for one in each] for axis, each in lengths.items()}
        return self._cut(kept, {axis: [one.tolist() for one in each] for axis, each in lengths.items()})

    @staticmethod
    def _cut(kept: dict[Axis, list[torch.Tensor]], scores: dict[str, object]) -> Cut:
        from tasks.models.cut import Cut

        hidden = kept["hidden"][0] if "hidden" in kept else None
        channels, groups = (tuple(kept.get(axis, ())) for axis in ("channels", "groups"))
        return Cut(channels=channels, groups=groups, hidden=hidden, scores=scores)

    def _left(self, whole: Whole, sparsity: float) -> dict[Axis, int]:
        """How many stay of each of the axes; refused where blocks differ, since one number is to tell of all."""
        counts: dict[Axis, set[int]] = {}
        if "channels" in self.axes:
            counts["channels"] = {network.width for network in whole.networks()}
        if "groups" in self.axes:
            counts["groups"] = {min(one.rows.values()) for one in whole.attentions()}
        if "hidden" in self.axes:
            counts["hidden"] = {whole.linears[0][one.down].shape[0] for one in whole.networks()[:1] if whole.attentions()}
        for axis, found in counts.items():
            if len(found) > 1:
                raise ValueError(f"unsupported: blocks have {min(found)} to {max(found)} {axis}, and width cuts all alike")
        return {
            axis: remaining(min(found), sparsity, 1 if axis == "groups" else self.multiple, CALLED[axis])
            for axis, found in counts.items()
        }

    def _channels(self, whole: Whole) -> list[torch.Tensor]:
        downs = [network.down for network in whole.networks()]
        lengths = whole.inputs(downs)
        return [lengths[down] for down in downs]

    def _hidden(self, whole: Whole) -> list[torch.Tensor]:
        readers = [network.ups[0] for network in whole.networks()] + [next(iter(one.rows)) for one in whole.attentions()]
        first, *others = whole.inputs(readers).values()
        return [sum(others, first)]

    def _groups(self, whole: Whole) -> list[torch.Tensor]:
        found = whole.attentions()
        lengths = whole.inputs([one.output for one in found], found[0].head_width)
        return [lengths[one.output].view(min(one.rows.values()), -1).square().sum(1).sqrt() for one in found]


def _longest(length_U: torch.Tensor, count: int) -> torch.Tensor:
    """Numbers of the ``count`` longest, ascending; of equals the first."""
    return length_U.argsort(descending=True, stable=True)[:count].sort().values.cpu()
