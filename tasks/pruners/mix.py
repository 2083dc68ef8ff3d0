"""Mix: take blocks, channels and groups of heads at once, as much of each as costs least quality under one budget.

The budget is the parameters of the model, the keys and values that a token leaves in the cache, or the measured time in which
the model reads a sequence, of which the sparsity is the share that goes. Calibration text says what is lost (in nats a token)
without each block, and with each number of channels or groups, those with the shortest activations left out as ``width`` does;
an integer program then takes the shape that loses least in sum (tasks/calibrate/solvers/mixing.py). All blocks that stay are
alike, so that a plain config tells the model. A measured time is this machine's: on another the same recipe may choose
otherwise, and what was chosen by stands in the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tasks.calibrate.resizer import Resizer, each_once

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from tasks.calibrate.solvers.mixing import Shape
    from tasks.calibrate.whole import Whole
    from tasks.models.cut import Cut

Axis = Literal["depth", "channels", "groups"]


class Mix(Resizer):
    """The sparsity is the share of the budget that goes."""

    paper: ClassVar[str] = "Puzzle (arXiv 2411.19146), with blocks that are all alike"
    foretold: ClassVar[bool] = False

    budget: Literal["parameters", "kv", "latency"] = "parameters"
    """What is to become less: the parameters, the keys and values of a token, or the measured time of reading a sequence."""
    axes: Annotated[tuple[Axis, ...], AfterValidator(each_once)] = Field(("depth", "channels", "groups"), min_length=1)
    """What may become less: blocks, channels of feed-forward networks, groups of heads."""
    levels: int = Field(8, ge=2)
    """How many numbers of channels, and of groups, are tried, evenly up to all."""

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        """The smallest shape it may choose."""
        full = self._full(whole)
        return _evenly(full, *(min(counts) for counts in self._counts(whole, full).values()))

    def check_model(self, skeleton: PreTrainedModel, sparsity: float) -> PreTrainedModel:
        from tasks.calibrate.whole import Whole

        smallest, whole = super().check_model(skeleton, sparsity), Whole(skeleton, [])
        if whole.depth < 2:
            raise ValueError("unsupported: mix prices blocks by models of one and of all, and there is only one; choose width")
        if self.budget != "latency":
            least = self._price(smallest) / self._price(skeleton)
            if least > 1 - sparsity:
                raise ValueError(
                    f"sparsity {sparsity:g} leaves less {self.budget} than any shape has; choose at most {1 - least:.3g}"
                )
        return smallest

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        from tasks.calibrate.solvers.mixing import prices, solve

        full, kept = self._full(whole), self._kept(whole)
        counts = self._counts(whole, full)
        losses = self._losses(whole, kept, counts)

        def price(shape: Shape) -> float:
            return self._price(self._model(whole, full, shape), whole)

        priced = prices(full, counts["depth"], counts["channels"], counts["groups"], price)
        by_block = [losses["depth"].get(index, 0.0) for index in range(full.depth)]

        def by_width(shape: Shape) -> float:
            return losses["channels"].get(shape.channels, 0.0) + losses["groups"].get(shape.groups, 0.0)

        chosen, gone = solve(priced, (1 - sparsity) * priced[full], full.depth, by_block, by_width)
        foretold = sum(by_block[index] for index in gone) + by_width(chosen)
        told = {"budget": self.budget, "left": priced[chosen] / priced[full], "foretold_loss": foretold, "losses": losses}
        return _cut(full, chosen, gone, kept, {**told, "shape": [chosen.depth, chosen.channels, chosen.groups], "gone": gone})

    def _full(self, whole: Whole) -> Shape:
        """The sizes of a model whose blocks are alike; refused where they differ."""
        from tasks.calibrate.solvers.mixing import Shape

        found = {
            "channels": {network.width for network in whole.networks()} if "channels" in self.axes else {0},
            "groups": {min(one.rows.values()) for one in whole.attentions()} if "groups" in self.axes else {0},
        }
        for axis, sizes in found.items():
            if len(sizes) > 1:
                raise ValueError(f"unsupported: blocks have {min(sizes)} to {max(sizes)} {axis}, and mix cuts all alike")
        return Shape(whole.depth, min(found["channels"]), min(found["groups"]))

    def _counts(self, whole: Whole, full: Shape) -> dict[str, list[int]]:
        """How many may stay of each axis, ascending, as far as transformers has models of such sizes; all where the axis is
        none to choose on."""
        from tasks.calibrate.solvers.mixing import possible

        def counts(axis: Axis, count: int) -> list[int]:
            if axis not in self.axes:
                return [count]
            if axis == "depth":
                return list(range(1, count + 1))
            tried = sorted({max(1, round(count * level / self.levels)) for level in range(1, self.levels + 1)})
            width = {"channels": full.channels, "groups": full.groups}
            return [each for each in tried if possible(whole.model, _evenly(full, full.depth, **{**width, axis: each}))]

        return {axis: counts(axis, getattr(full, axis)) for axis in ("depth", "channels", "groups")}

    def _kept(self, whole: Whole) -> dict[str, list[list[int]]]:
        """Of each axis of width, the numbers of each block in the order in which they stay, the longest first."""
        from tasks.methods import build

        axes = [axis for axis in self.axes if axis != "depth"]
        scores = build("pruners", {"width": {"axes": axes}}, Resizer).cut(whole, 0.5).scores if axes else {}
        return {axis: [sorted(range(len(one)), key=lambda unit: -one[unit]) for one in each] for axis, each in scores.items()}

    def _losses(
        self, whole: Whole, kept: dict[str, list[list[int]]], counts: dict[str, list[int]]
    ) -> dict[str, dict[int, float]]:
        """What is lost (nats a token) without each block, and with each number of channels or groups."""
        dense = whole.loss()
        found: dict[str, dict[int, float]] = {"depth": {}, "channels": {}, "groups": {}}
        if "depth" in self.axes:
            found["depth"] = {index: whole.loss([index]) - dense for index in range(whole.depth)}
        for axis, order in kept.items():
            for count in counts[axis][:-1]:
                found[axis][count] = whole.loss(silent=self._silent(whole, axis, order, count)) - dense
        return found

    @staticmethod
    def _silent(whole: Whole, axis: str, order: list[list[int]], count: int) -> dict[str, torch.Tensor]:
        """Which features the last matrix of each network, or of each attention, still reads."""
        import torch

        names = [one.down for one in whole.networks()] if axis == "channels" else [one.output for one in whole.attentions()]
        found = {}
        for (index, units), name in zip(enumerate(order), names, strict=True):
            keep = torch.zeros(len(units), device=whole.device)
            keep[units[:count]] = 1
            found[name] = keep.repeat_interleave(whole.linears[index][name].shape[-1] // len(units))
        return found

    @staticmethod
    def _model(whole: Whole, full: Shape, shape: Shape) -> PreTrainedModel:
        from tasks.calibrate.solvers.mixing import left_of

        return left_of(whole.model, _evenly(full, shape.depth, shape.channels, shape.groups))

    def _price(self, model: PreTrainedModel, whole: Whole | None = None) -> float:
        from tasks.calibrate.solvers import mixing

        if self.budget == "latency":
            assert whole is not None, "it is measured on the text"
            return mixing.latency(model, whole.model.dtype, whole.batches[0].tokens[:1].to(whole.device))
        return mixing.parameters(model) if self.budget == "parameters" else mixing.kv_values(model)


def _evenly(full: Shape, depth: int, channels: int, groups: int) -> Cut:
    """The first of everything: a cut for its sizes alone."""
    from tasks.calibrate.solvers.mixing import Shape

    order = {"channels": [list(range(full.channels))] * full.depth, "groups": [list(range(full.groups))] * full.depth}
    return _cut(full, Shape(depth, channels, groups), list(range(depth, full.depth)), order, {})


def _cut(full: Shape, shape: Shape, gone: list[int], order: dict[str, list[list[int]]], scores: dict[str, object]) -> Cut:
    import torch

    from tasks.models.cut import Cut

    blocks = tuple(index for index in range(full.depth) if index not in gone) if gone else None
    channels, groups = (
        tuple(torch.tensor(sorted(units[:count])) for units in order[axis]) if count < whole else ()
        for axis, count, whole in (("channels", shape.channels, full.channels), ("groups", shape.groups, full.groups))
    )
    return Cut(blocks=blocks, channels=channels, groups=groups, scores=scores)
