"""AST: a dense model is retrained into N:M while its mask still moves, learning from the model it was.

Weights are stored dense and multiplied sparse, with the gradient straight through; the mask follows their magnitudes every few
steps, and what lies outside it is pulled to zero by a decay that rises over the first share of the run, so that masks move at
first and settle in the end. The decay comes through the gradient, as in the authors' code for LLaMA; their optimizer for GPT-2
takes it with the wrong sign, and lets masked weights grow. The paper's mask by activations is not here.

With ``slorb`` each matrix has a branch (SLoRB) that multiplies the sums of so many consecutive inputs. It begins as the mean
of what the first mask takes of each group, the best there is for inputs that are alike, and trains with the rest. The authors
may train how inputs are added up as well; here they are added up, and what is stored is a matrix of a ``slorb``-th of the
width. The model that comes out has the surgery ``slorb`` in its config, its bytes and FLOPs counted.

On SmolLM2-135M (dense 21.0 on WikiText-2's test text), retrained over 2 M tokens of its valid text in 244 steps, three seeds:
27.6 ± 0.4 from the dense weights, whose magnitude mask has 1772; masked distillation from SparseGPT's 2:4 (42.0) has
20.43 ± 0.06. A decay of 0.01 came to 28.4, of 0.2 to 33.7 (one seed). So at a hundredth of the paper's steps a good mask that
stays is worth more than a poor one that moves.

So it is by `make claims-recover` (perplexity, 48 steps, three seeds, dense 12.21): AST 15.55 ± 0.13, with SLoRB 15.06 ± 0.05,
masked distillation from SparseGPT's 2:4 14.47 ± 0.06, under the magnitude mask that AST begins with 14.93 (one seed). The decay
was 0.01; ten times as much came to 15.04 (one seed).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.methods import build
from tasks.models.build.surgery import Surgery
from tasks.train.distilling import DistillingRegime
from tasks.train.sparse.semi_structured_regime import NMRegime

if TYPE_CHECKING:
    from tasks.models.find.linears import Linear
    from tasks.train.hook import Hook
    from tasks.train.regime import Setting


class Ast(DistillingRegime, NMRegime):
    paper: ClassVar[str] = "AST (arXiv 2407.20584)"

    decay: float = Field(6e-5, ge=0)
    """Times the weight, added to the gradient of weights outside the mask."""
    ramp: float = Field(0.2, ge=0, le=1)
    """Share of the run over which the decay rises from nothing, linearly."""
    refresh: int = Field(10, gt=0)
    """Steps between choices of the masks."""
    slorb: int | None = Field(None, gt=0, exclude_if=lambda slorb: slorb is None)
    """Consecutive inputs whose sum a dense branch beside each sparse matrix multiplies (16 in the paper); none without it."""

    @model_validator(mode="after")
    def _branches(self) -> Ast:
        if self.slorb and self.dense:
            raise ValueError(f"slorb begins with the first mask, before the first step; leave dense {self.dense:g} out")
        return self

    def check_linear(self, linear: Linear) -> None:
        super().check_linear(linear)
        if surgery := self.surgery():
            surgery.check_linear(linear)

    def surgery(self) -> Surgery | None:
        spec = {"slorb": {"group": self.slorb, "location": self.location}}
        return build("surgeries", spec, Surgery) if self.slorb else None

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.sparse.branched import Branched
        from tasks.train.sparse.semi_structured import Refreshed
        from tasks.train.sparse.semi_structured_regime import treated

        phase = partial(self.phase, total=setting.steps)
        given = setting.linears, setting.masks, treated(setting, self), phase, self.refresh, self.decay
        ramp = round(self.ramp * setting.steps)
        return [Branched(*given, ramp).begin_with(self.slorb) if self.slorb else Refreshed(*given, ramp)]
