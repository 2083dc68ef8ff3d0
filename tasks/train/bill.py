"""What a finished training run cost and came to, as its record tells it."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.models.accounting import Shape
from tasks.train.hook import Hook
from tasks.train.loop import Totals


def bill(
    shape: Shape, trainable: int, step_tokens: int, length: int, totals: Totals, hooks: Sequence[Hook], taught: bool
) -> dict[str, float]:
    """Of steps of ``step_tokens`` tokens in sequences of ``length``; ``taught``: a teacher's forward pass is paid for. What
    hooks leave comes last."""
    seen = totals.steps * step_tokens
    teacher = shape.forward_flops(length) * seen if taught else 0.0
    return {
        "prunable_parameters": shape.prunable,
        "trainable_parameters": trainable,
        "training_tokens": seen,
        "training_flops": shape.training_flops(seen, length, totals.compute_steps / totals.steps) + teacher,
        "average_parameters": shape.prunable * totals.density_steps / totals.steps,
        "training_loss": totals.last["loss"],
        **{name: value for hook in hooks for name, value in hook.results().items()},
    }
