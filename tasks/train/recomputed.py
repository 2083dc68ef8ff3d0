"""Activation checkpointing: of a decoder block only its input is kept, and the block runs again in the backward pass.

A block's activations are some thirty times its input, so a model trains in the memory of one block and of every block's input,
for a third more time. What surrounds a block's forward pass (compiled code, weights swapped for its duration) runs again as
well, and draws the random numbers that it drew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tasks.models.find.linears import decoder_blocks


class Recomputed:
    """A forward pass that runs again when gradients are asked for. What wraps it later has to run again, too: it goes
    inside, around ``forward``."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    @property
    def compiled(self) -> bool:
        return getattr(self.forward, "compiled", False)

    def __call__(self, *given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*given, **named)
        return checkpoint(self.forward, *given, use_reentrant=False, **named)


def recompute_blocks(model: nn.Module) -> None:
    """From now on the decoder blocks of a model keep nothing for the backward pass but their inputs."""
    for block in decoder_blocks(model)[1]:
        block.forward = Recomputed(block.forward)
