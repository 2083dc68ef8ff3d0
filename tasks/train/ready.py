"""Models made ready for the machine at hand: the one that trains, and the teacher it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.context import Context, Execution
from tasks.models.build.building import learn_padding
from tasks.models.files.checkpoint import load_model
from tasks.models.stream.slices import sliced
from tasks.train.compiled import compile_blocks
from tasks.train.cost import FULL, Recompute, Running, fitting, memory, remedy
from tasks.train.recomputed import recompute_blocks
from tasks.train.watch import PULSES, Watch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.models.accounting import Shape
    from tasks.train.birth import Weights


def ready(model: PreTrainedModel, execution: Execution, recompute: Recompute, asked: tuple[str, ...] = ()) -> None:
    """Before a regime shapes the model, and an engine takes it; ``asked`` is what an objective wants besides logits. Raises
    ValueError where the engine cannot train the model."""
    dropped = getattr(model.config.get_text_config(decoder=True), "layerdrop", 0)
    if dropped and execution.engine == "deepspeed":  # a gradient that does not come is waited for, or an earlier one taken
        raise ValueError(
            f"the model leaves out layers at random (layerdrop {dropped:g} in its config), whose gradients DeepSpeed does not "
            "get in every pass; set layerdrop to 0, or engine to torch in the profile"
        )
    learn_padding(model)
    model.train()
    if recompute == "selective":
        recompute_blocks(model, recompute)
    if tells(model, asked) and execution.compile:
        compile_blocks(model)
    if recompute == "layer":
        recompute_blocks(model, recompute)


def tells(model: PreTrainedModel, asked: tuple[str, ...]) -> bool:
    """Make a model able to say what an objective wants besides logits; whether its blocks may run compiled then."""
    if "attentions" not in asked:
        return True
    model.set_attn_implementation("eager")
    return False


def decided(context: Context, shape: Shape, how: Running) -> Running:
    """The same, with ``recompute: auto`` decided by the card at hand; where that computes anything again it is told."""
    execution = context.execution
    if execution.recompute != "auto" or execution.device != "cuda":
        return how
    room = memory_of(execution.device)
    found = fitting(shape, how, execution.recompute, room)
    if found.recompute != "none":
        kept = " but for matrix products and attention" if found.recompute == "selective" else ""
        needed = f"{memory(shape, how) / 1e9:.0f} GB of {room / 1e9:.0f}"
        context.note(f"the backward pass runs each layer again{kept}; without that a step takes {needed}")
    return found


def memory_of(device: str) -> int:
    """Bytes of a card."""
    return torch.cuda.get_device_properties(device).total_memory


def load(directory: Path, context: Context, whole: bool) -> tuple[PreTrainedModel, Weights | None]:
    """A stored model to train, in float32: whole on the CPU, or, where the engine keeps each rank's pieces alone, hollow and
    beside it the weights, by slices of its files."""
    execution = context.execution
    if execution.in_pieces and not whole:
        return sliced(directory, context.scratch / f"pieces-{execution.rank}")
    return load_model(directory, dtype=torch.float32), None


def watch_over(context: Context, shape: Shape, how: Running, steps: int) -> Watch:
    """Over this rank. What would save memory is asked as if a step took a tenth more than there is."""
    execution = context.execution
    address = f"{context.scratch.parent.name}/{context.scratch.name}"

    def advice() -> str:
        return remedy(shape, how, 0.9 * memory(shape, how) / FULL) or "set micro_batch to 1"

    return Watch(context.scratch / PULSES, address, execution.rank, execution.ranks, steps, execution.patience, advice)


def load_teacher(directory: Path, execution: Execution, asked: tuple[str, ...] = ()) -> PreTrainedModel:
    """It only answers, in the precision that training computes in."""
    dtype = torch.bfloat16 if execution.precision == "bfloat16" else None  # None: its own
    teacher = load_model(directory, dtype, execution.device).requires_grad_(False)
    if tells(teacher, asked) and execution.compile:
        compile_blocks(teacher)
    return teacher
