"""What a training run is to come to, as a recipe says it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Until(BaseModel):
    """What a run is to come to, and how that is measured: on held-out text, in windows of the stage's ``length``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    perplexity: float = Field(gt=1)
    """Held-out perplexity at which the run ends; it ends as well when that is out of reach."""
    tokens: int = Field(32_768, gt=0)
    """How much held-out text is read each time it is measured."""
    measurements: int = Field(20, ge=8)
    """How often it is measured over the whole run."""
