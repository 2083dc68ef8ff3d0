"""The shelf of evaluators: each file measures one thing about a model and returns scalars by metric name.

Names, units and directions of the metrics stand in ``cluster.tracking.VOCABULARY``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from tasks.methods import Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass
class Candidate:
    """The model under evaluation: loaded once, shared by the evaluators of a stage. ``data`` is a prepare artifact."""

    directory: Path
    data: Path
    device: str = "cpu"
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None

    @cached_property
    def model(self) -> PreTrainedModel:
        from tasks.models.checkpoint import load_model

        return load_model(self.directory, device=self.device).eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        from tasks.data.tokenizer import load_tokenizer

        return load_tokenizer(self.data / "tokenizer")

    @property
    def longest(self) -> int:
        """The longest sequence the model's positions allow; a length that serves where they set no bound."""
        from tasks.models.facts import positions

        return positions(self.model.config) or 2048


class Evaluator(Method):
    """Root of the evaluators. An ``exclusive`` one measures time, so it asks for the whole machine."""

    exclusive: ClassVar[bool] = False

    def check_positions(self, positions: int) -> None:
        """Raise ValueError where this measures on sequences longer than a model's positions allow."""

    def measure(self, candidate: Candidate) -> dict[str, float]:
        raise NotImplementedError
