"""Models made ready for the machine at hand: the one that trains, and the teacher it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.context import Execution
from tasks.models.build.building import learn_padding
from tasks.models.files.checkpoint import load_model
from tasks.train.compiled import compile_blocks
from tasks.train.recomputed import recompute_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def ready(model: PreTrainedModel, execution: Execution, asked: tuple[str, ...] = ()) -> None:
    """Before a regime shapes the model, and an engine takes it; ``asked`` is what an objective wants besides logits."""
    learn_padding(model)
    model.train()
    if tells(model, asked) and execution.compile:
        compile_blocks(model)
    if execution.recompute == "layer":
        recompute_blocks(model)


def tells(model: PreTrainedModel, asked: tuple[str, ...]) -> bool:
    """Make a model able to say what an objective wants besides logits; whether its blocks may run compiled then."""
    if "attentions" not in asked:
        return True
    model.set_attn_implementation("eager")
    return False


def load_teacher(directory: Path, execution: Execution, asked: tuple[str, ...] = ()) -> PreTrainedModel:
    """It only answers, in the precision that training computes in."""
    dtype = torch.bfloat16 if execution.precision == "bfloat16" else None  # None: its own
    teacher = load_model(directory, dtype, execution.device).requires_grad_(False)
    if tells(teacher, asked) and execution.compile:
        compile_blocks(teacher)
    return teacher
