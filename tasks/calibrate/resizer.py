"""The root of pruners that leave a smaller model of the same architecture: fewer blocks, or blocks that are all less wide.

Zeros in weights make a transformer no faster; a smaller shape does. What is taken is the same in every block, so that the
config alone tells the smaller model and any program loads it. Such a pruner looks at the model whole
(:class:`tasks.calibrate.whole.Whole`), which has to fit in memory, and says what stays; files are written elsewhere
(:mod:`tasks.models.files.recut`). It leaves no masks, and what is recovered afterwards is an ordinary dense model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from tasks.calibrate.method import Pruner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.calibrate.whole import Whole
    from tasks.formats.pattern import Pattern
    from tasks.models.cut import Cut

Axes = TypeVar("Axes", bound=tuple[str, ...])


def each_once(axes: Axes) -> Axes:
    """What may become less, where nothing is listed twice; ValueError otherwise."""
    if twice := [axis for axis in axes if axes.count(axis) > 1]:
        raise ValueError(f"{twice[0]} is listed twice")
    return axes


class Resizer(Pruner):
    """The sparsity is the share of the units that go, of whatever units a method counts in."""

    scope: ClassVar[Literal["row", "layer"]] = "layer"
    patterns: ClassVar[tuple[str, ...]] = ()
    takes_masks: ClassVar[bool] = False
    shrink: ClassVar[bool] = True
    foretold: ClassVar[bool] = True  # whether :meth:`outline` tells the very sizes that are left, and not the smallest possible

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        """What stays of a model."""
        raise NotImplementedError

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        """A cut of the sizes that :meth:`cut` will leave, or of the smallest it may where the text decides, made without a look
        at weights or text: the model may be a skeleton. Raises ValueError where the sparsity takes nothing, or the model has
        not what is to be taken."""
        raise NotImplementedError

    def check_model(self, skeleton: PreTrainedModel, sparsity: float) -> PreTrainedModel:
        """The skeleton of the smaller model; ValueError, before any work, where a model cannot be made so much smaller."""
        from tasks.calibrate.whole import Whole
        from tasks.models.files.recut import check_sizes

        return check_sizes(skeleton, self.outline(Whole(skeleton, []), sparsity))

    def suit(self, pattern: Pattern) -> None:
        raise ValueError(f"{self.name} takes whole parts of a model and makes no masks; choose a pruner of weights")

    def choices(self, pattern: Pattern, widths: Mapping[str, int], heads: int | None) -> dict[str, int]:
        return {}


def remaining(count: int, sparsity: float, multiple: int, what: str) -> int:
    """How many of ``count`` stay, to the nearest ``multiple``; ValueError where none would go."""
    left = max(multiple, round(count * (1 - sparsity) / multiple) * multiple)
    if left >= count:
        most = (count - 1) // multiple * multiple  # what may stay at most
        if not most:
            raise ValueError(f"there are only {count} {what}, and {multiple} have to stay")
        raise ValueError(
            f"sparsity {sparsity:g} takes none of {count} {what}; choose {1 - most / count:.3g}, which takes {count - most}"
        )
    return left
