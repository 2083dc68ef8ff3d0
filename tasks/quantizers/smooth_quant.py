"""SmoothQuant (arXiv 2211.10438): move outliers of inputs into the weights, so that both fit eight bits.

A feature far larger than the others stretches the steps of a whole token. It is divided by s, and its column multiplied, with s
= (its largest value)^alpha / (the column's largest weight)^(1 - alpha): alpha 1 moves all of the difficulty to the weights,
alpha 0 all of it to the inputs. As in the paper only what norms put out is smoothed; the output and narrowing projections read
inputs as they are, each token by its own scale. Without a scheme it makes W8A8: weights rounded per row, inputs per token while
the model runs. Largest weights are those that live, and a feature none of whose weights lives stays as it is.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from tasks.calibrate.folding import Folding
from tasks.calibrate.quantizer import INTEGERS

if TYPE_CHECKING:
    from tasks.calibrate.folds import Fold
    from tasks.calibrate.method import BlockView
    from tasks.formats.grid import Grid

LEAST = 1e-5


class SmoothQuant(Folding):
    paper: ClassVar[str] = "SmoothQuant (arXiv 2211.10438)"
    sources: ClassVar[Literal["norms", "any"]] = "norms"

    alpha: float = Field(0.5, ge=0, le=1)
    """How much of the difficulty goes to the weights."""

    @model_validator(mode="wrap")
    @classmethod
    def _eight_bits(cls, given: object, make: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict) or given.keys() & {*INTEGERS, "scheme"}:
            return make(given)
        made = make({**given, "scheme": "W8A8"})
        made.model_fields_set.discard("scheme")  # nobody said it, so precision may choose others
        return made

    def scale(self, view: BlockView, fold: Fold, grids: Mapping[str, Grid]) -> torch.Tensor:
        from tasks.calibrate.both import Both, Magnitudes

        seen = view.statistics[fold.consumers[0]]
        assert isinstance(seen, Both) and isinstance(seen.own, Magnitudes)
        largest_I = torch.stack([view.matrices[name].float().abs().amax(0) for name in fold.consumers]).amax(0)
        return smoothing(seen.own.peak_I, largest_I, self.alpha)


def smoothing(peak_I: torch.Tensor, largest_I: torch.Tensor, alpha: float) -> torch.Tensor:
    """The scale of each feature; 1 where it is always zero or none of its weights lives."""
    scale_I = peak_I.pow(alpha) / largest_I.clamp(min=LEAST).pow(1 - alpha)
    return scale_I.clamp(min=LEAST).masked_fill((peak_I == 0) | (largest_I == 0), 1)
