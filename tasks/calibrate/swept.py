"""Root of the methods that go column by column, and make good in the columns to come what each loses (OBS)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.calibrate.method import BlockMethod

if TYPE_CHECKING:
    from tasks.calibrate.observe import Hessian
    from tasks.models.find.linears import Linear


class Swept(BlockMethod):
    apart: ClassVar[bool] = True

    percent_damp: float = Field(0.01, gt=0, le=1)
    """Share of the mean curvature that is added to every feature's."""
    act_order: bool = True
    """Take columns, or N:M groups, by descending curvature; otherwise from left to right."""
    double: bool = False
    """Sweep in float64."""

    def curvature(self, linear: Linear) -> Hessian:
        """What the sweep has to know of a matrix's inputs."""
        from tasks.calibrate.observe import Hessian

        return Hessian(linear.shape[-1], "float64" if self.double else "float32")
