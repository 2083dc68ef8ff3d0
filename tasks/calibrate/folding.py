"""The root of quantizers that scale before they round: inputs are divided feature by feature, matrices multiplied by the
same, and the division is folded into what makes the inputs. The block computes what it did, and rounds better.

Which scale is best is what a method says; by which quantizer the scaled matrices are then rounded is a field. Dead weights
stay zero under any scale; a feature all of whose weights are dead takes no part in choosing one. Matrices whose inputs have
nothing to fold a scale into (behind an activation that is not linear, or experts) are rounded as they are, and the walk says
how many: which they are is known only once a block runs.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from tasks.calibrate.method import BlockView, Edit
from tasks.calibrate.quantizer import INTEGERS, Quantizer
from tasks.methods import of

if TYPE_CHECKING:
    from tasks.calibrate.folds import Fold
    from tasks.calibrate.observe import InputStatistic
    from tasks.calibrate.report import WalkReport
    from tasks.formats.grid import Grid
    from tasks.models.find.linears import Linear

UNFOLDED = "unfolded"
SAID = (*INTEGERS, "scheme", "schemes", "range")  # by the method, for the quantizer within too


class Folding(Quantizer):
    """``sources`` is what a scale may be folded into: norms alone, or matrices too."""

    plain: ClassVar[bool] = False
    sources: ClassVar[Literal["norms", "any"]] = "any"

    rounding: Annotated[Quantizer, of("quantizers")] = Field("round_to_nearest", validate_default=True)
    """The quantizer that rounds what was scaled; scheme and range are those beside it."""

    @field_validator("rounding")
    @classmethod
    def _plain(cls, rounding: Quantizer) -> Quantizer:
        if not rounding.plain:
            raise ValueError(f"{rounding.name} does more than round a matrix; choose gptq or round_to_nearest")
        if said := [name for name in SAID if name in rounding.model_fields_set]:
            raise ValueError(f"{said[0]} is said beside rounding, for all of it; leave it out of {rounding.name}")
        return rounding

    @model_serializer(mode="wrap")
    def _saying(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        written = super()._saying(write)
        within = self.rounding.model_dump(mode="json", exclude=set(SAID))
        return {**written, "rounding": {self.rounding.name: within}}

    def scale(self, view: BlockView, fold: Fold, grids: Mapping[str, Grid]) -> torch.Tensor:
        """What the columns of the matrices that read one input are multiplied by, float32 [I], all positive. ``grids`` are
        those of the matrices that will be rounded."""
        raise NotImplementedError

    def statistic(self, linear: Linear) -> InputStatistic | None:
        return self._within().statistic(linear)

    def measures(self, linear: Linear) -> bool:
        return True

    def _within(self) -> Quantizer:
        return self.rounding.model_copy(update={"range": self.range})

    def solve(self, view: BlockView) -> dict[str, Edit]:
        from tasks.calibrate.folds import find_folds
        from tasks.calibrate.inputs import input_scales, of_the_method

        grids, within = self.grids_of(view), self._within()
        columns, rows, edits = dict[str, torch.Tensor](), dict[str, torch.Tensor](), dict[str, Edit]()
        for fold in find_folds(view, self.sources):
            scale_I = self.scale(view, fold, grids)
            columns |= dict.fromkeys(fold.consumers, scale_I)
            rows |= {} if fold.norm else {fold.source: scale_I}
            edits |= {name: Edit(value) for name, value in fold.apart(view, scale_I).items() if name not in view.matrices}
        scaled = _scaled(view, columns, rows)

        def solve_one(name: str) -> Edit:
            statistic = of_the_method(scaled.statistics.get(name))
            edit = within.solve_linear(scaled.matrices[name], statistic, grids[name], view.keep.get(name))
            return edit if name in columns else replace(edit, notes={**edit.notes, UNFOLDED: 1.0})

        edits |= {name: Edit(scaled.matrices[name]) for name in columns.keys() | rows.keys() if name not in grids}
        return edits | scaled.each(solve_one, grids) | input_scales(scaled, self.scheme_of)

    def remarks(self, report: WalkReport) -> list[str]:
        left = sum(UNFOLDED in notes for block in report.blocks for notes in block.notes.values())
        total, into = report.total("matrices"), "no norm" if self.sources == "norms" else "nothing"
        return (
            [f"{left} of {total} matrices were rounded unscaled: their inputs have {into} to fold a scale into"] if left else []
        )


def _scaled(view: BlockView, columns: Mapping[str, torch.Tensor], rows: Mapping[str, torch.Tensor]) -> BlockView:
    """The block with the columns of matrices multiplied and their rows divided by scales, and the statistics of what they read
    then; those that share one still do."""
    matrices = dict(view.matrices)
    for name in columns.keys() | rows.keys():
        weight_OI = view.matrices[name].float()
        weight_OI = weight_OI * columns[name] if name in columns else weight_OI
        weight_OI = weight_OI / rows[name][:, None] if name in rows else weight_OI
        matrices[name] = weight_OI.to(view.matrices[name].dtype)
    divided: dict[int, InputStatistic] = {}
    for name in columns:
        statistic = view.statistics[name]
        if id(statistic) not in divided:
            divided[id(statistic)] = statistic.divided(columns[name])
    statistics = {name: divided.get(id(statistic), statistic) for name, statistic in view.statistics.items()}
    return replace(view, matrices=matrices, statistics=statistics)
