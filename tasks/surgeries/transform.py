"""Transform: matrices of the decoder blocks replaced by bigger and sparser layers, at the FLOPs of the dense model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import field_validator

from tasks.methods import of
from tasks.models.build.surgery import Surgery
from tasks.models.build.transform import Transform

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Transformed(Surgery):
    paper: ClassVar[str] = "Sparse-IFT (arXiv 2303.11525)"

    by: Annotated[Transform, of("transforms")]
    """The transform, one that replaces modules; recipes choose it as ``transform`` of a new model."""

    @field_validator("by")
    @classmethod
    def _replaces(cls, by: Transform) -> Transform:
        if not by.replaces:
            raise ValueError(f"{by.name} changes sizes in the config and no modules")
        return by

    def apply(self, model: PreTrainedModel) -> None:
        self.by.apply(model)
