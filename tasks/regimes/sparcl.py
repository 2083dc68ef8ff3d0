"""SparCL: learning a sequence of corpora with sparse weights, less data and sparse gradients, against forgetting.

Task-aware dynamic masks (share ``swap`` of each matrix exchanged every ``interval`` of a task, frozen from ``freeze``
on), dynamic data removal (``removed`` of each task's sequences, the easiest, in four steps), gradient masks (a share
``gradient_sparsity`` of each matrix's gradient dropped, chosen anew every ``refresh`` steps) and replay of past tasks.
Defaults are those of the authors' code for CIFAR-10, epochs turned into shares of a task; difficulty of a sequence is
the share of its tokens predicted wrong, which is the paper's misclassification rate for text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.train.regime import Outcome, Setting, SparseRegime

if TYPE_CHECKING:
    from tasks.train.hook import Hook


class Sparcl(SparseRegime):
    paper: ClassVar[str] = "SparCL (arXiv 2209.09476)"
    masks: ClassVar[Outcome] = "moved"
    keeps_masks: ClassVar[bool] = False
    needs_sequence: ClassVar[bool] = True

    sparsity: float = Field(0.75, ge=0, lt=1)
    """Share of the prunable weights that is masked."""
    swap: float = Field(0.01, ge=0, lt=0.5)
    """Share of each matrix's weights that is exchanged in an update of the masks."""
    interval: float = Field(0.1, gt=0, le=1)
    """Time between updates of the masks, as a share of a task."""
    freeze: float = Field(0.9, gt=0, le=1)
    """Share of a task after which its masks stay."""
    importance_gradient: float = Field(0.5, ge=0)
    """Weight of the gradient, beside the magnitude, in a weight's importance."""
    removed: float = Field(0.3, ge=0, lt=1)
    """Share of each task's sequences, the easiest, that is left out by its end."""
    gradient_sparsity: float = Field(0.8, ge=0, lt=1)
    """Share of each matrix's gradient that is dropped."""
    refresh: int = Field(30, gt=0)
    """Steps between choices of which gradients are dropped."""
    buffer: int = Field(64, ge=0)
    """Sequences of past tasks that are kept for replay."""
    replay: float = Field(0.25, gt=0, le=1)
    """Sequences replayed in a step, as a share of its batch."""
    replay_logits: float = Field(0.1, ge=0)
    """Weight of the squared error to the logits of then."""
    replay_labels: float = Field(0.5, ge=0)
    """Weight of the cross-entropy on replayed sequences."""
    probes: int = Field(64, gt=0)
    """Sequences that forgetting is measured on, per task."""

    def hooks(self, setting: Setting) -> list[Hook]:
        from tasks.train.continual.replay import Replay
        from tasks.train.continual.sequence import TaskSequence
        from tasks.train.continual.sparcl import GradientMasks, TaskAwareMasks

        assert setting.data is not None, "a run has data"
        removals = (0.1, 0.2, 0.3, 0.4) if self.removed else ()
        sequence = TaskSequence(setting.data, setting.steps, self.removed, removals, self.probes)
        masks = TaskAwareMasks(
            setting.linears,
            self.starting_masks(setting),
            sequence,
            self.sparsity,
            min(self.swap, self.sparsity),
            self.interval,
            self.freeze,
            self.importance_gradient,
            setting.seed,
        )
        replay = Replay(sequence, self.buffer, self.replay, self.replay_logits, self.replay_labels, setting.seed)
        return [sequence, replay, masks, GradientMasks(setting.linears, self.gradient_sparsity, self.refresh)]
