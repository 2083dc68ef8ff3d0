"""A model made smaller: looked at whole, cut, written, and held against the model it was.

A model without some of its blocks computes what it computed with those blocks passed over, to the last digit but rounding;
where it does not, its config says something of its layers that is not understood, and the stage fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.calibrate.resizer import Resizer

if TYPE_CHECKING:
    from tasks.calibrate.whole import Whole
    from tasks.context import Context
    from tasks.data.batch import Batch
    from tasks.models.cut import Cut

REPORT = "report"
TOLERANCE = 1e-2  # of the spread of the logits; a block of another kind moves them by as much as they spread


def resize(method: Resizer, sparsity: float, directory: Path, batches: Sequence[Batch], context: Context) -> dict[str, float]:
    """Write the smaller model into the stage's output, and what the choice was made by into its report."""
    from tasks.calibrate.whole import Whole
    from tasks.models.files.checkpoint import load_model, skeleton
    from tasks.models.files.layout import MASKS
    from tasks.models.files.recut import check_sizes, recut

    if (directory / MASKS).exists():
        raise ValueError(f"{method.name} takes no model with masks, and {directory} has some; prune with {method.name} first")
    whole = Whole(load_model(directory, device=context.execution.device), batches, _teller(context))
    before = sum(parameter.numel() for parameter in whole.model.parameters())
    cut = method.cut(whole, sparsity)
    check_sizes(skeleton(directory), cut)  # which parts go is known now, where before it was how many
    recut(directory, context.output, context.scratch, cut)
    (context.output / REPORT / f"{method.name}.json").write_text(json.dumps(cut.scores))
    smaller = load_model(context.output, device=context.execution.device)
    left = sum(parameter.numel() for parameter in smaller.parameters())
    if cut.blocks is not None:
        if not cut.channels and not cut.groups:
            _check_passed_over(whole, smaller, cut)
        gone = [index for index in range(whole.depth) if index not in cut.blocks]
        context.note(
            f"without blocks {', '.join(map(str, gone))} of {whole.depth}; {1 - left / before:.1%} of the parameters went"
        )
    else:
        context.note(f"{1 - left / before:.1%} of the parameters went")
    return {"parameters_gone": 1 - left / before}


def _teller(context: Context) -> Callable[[int, int], None]:
    return lambda done, total: context.progress(done, total, "batches")


def _check_passed_over(whole: Whole, smaller: object, cut: Cut) -> None:
    import torch

    from tasks.calibrate.whole import skipped

    tokens = whole.batches[0].tokens[:1].to(whole.device)
    with torch.no_grad(), skipped(whole.blocks, set(range(whole.depth)) - set(cut.blocks or ())):
        expected = whole.model(input_ids=tokens, use_cache=False).logits.float()
        found = smaller(input_ids=tokens, use_cache=False).logits.float()  # type: ignore[operator]
    if not bool((found - expected).abs().max() <= TOLERANCE * expected.std()):
        kind = whole.model.config.model_type
        raise ValueError(
            f"unsupported: {kind} without some of its blocks is not what it was with them passed over; choose width, or a "
            "pruner of weights"
        )
