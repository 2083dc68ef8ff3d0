"""The terms of objectives that compare what happens inside a student and its teacher.

Each is worked out sequence by sequence, as a mean over the tokens read, and sequences weigh as many as their tokens that count.
So it is the same for a global batch however that is shared out over ranks and micro-batches, which are a profile's affair.

Shapes: B = sequences, T = tokens, D = hidden features, H = heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

from tasks.data.batch import Batch

if TYPE_CHECKING:
    from tasks.models.facts import ModelFacts

EPSILON = 2.0**-7  # bfloat16's, as in SquareHead
LEAST = 1e-8  # odds below it count as these


def check_depths(name: str, student: ModelFacts, teacher: ModelFacts) -> None:
    """Raise ValueError where the student has more blocks than there are to learn from."""
    if student.depth > teacher.depth:
        raise ValueError(
            f"{name} compares blocks with the teacher's, and it has {teacher.depth}, the model {student.depth}; "
            "take objective distillation"
        )


def pairs(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], blocks: Literal["all", "last"]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each block of a student is compared with: block i of S with block ceil(i * T / S) of T, counted from 1."""
    ours, theirs = len(student), len(teacher)
    met = [(student[i - 1], teacher[-(-i * theirs // ours) - 1]) for i in range(1, ours + 1)]
    return met if blocks == "all" else met[-1:]


def relative_square(ours_BTD: torch.Tensor, theirs_BTD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean squared difference over the teacher's mean square in the sequence."""
    theirs_BTD = theirs_BTD.float()
    apart_BTD, size_BTD = (ours_BTD.float() - theirs_BTD).square(), theirs_BTD.square()
    return _over(_each(apart_BTD.mean(-1), batch) / (_each(size_BTD.mean(-1), batch) + EPSILON), batch)


def cosine_distance(ours_BTD: torch.Tensor, theirs_BTD: torch.Tensor, batch: Batch) -> torch.Tensor:
    """1 less the cosine of a token's two hidden states."""
    return _over(_each(1 - functional.cosine_similarity(ours_BTD.float(), theirs_BTD.float(), dim=-1), batch), batch)


def turned(ours_BHTT: torch.Tensor, theirs_BHTT: torch.Tensor, batch: Batch) -> torch.Tensor:
    """KL(teacher || student) of where a token's heads look, mean over the heads."""
    theirs_BHTT = theirs_BHTT.float()
    ratio_BHTT = theirs_BHTT.clamp_min(LEAST).log() - ours_BHTT.float().clamp_min(LEAST).log()
    return _over(_each((theirs_BHTT * ratio_BHTT).sum(-1).mean(1), batch), batch)


def mean(each: Sequence[torch.Tensor]) -> torch.Tensor:
    """Over blocks, wherever they lie."""
    return sum((one.to(each[0].device) for one in each[1:]), each[0]) / len(each)


def _each(values_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of each sequence, over its tokens that are no padding: [B]."""
    if batch.documents is None:
        return values_BT.mean(1)
    read_BT = batch.documents > 0
    return values_BT.masked_fill(~read_BT, 0.0).sum(1) / read_BT.sum(1).clamp_min(1)


def _over(values_B: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Over sequences, by how many of their tokens count: as the loop weighs micro-batches."""
    if batch.labels is None:
        return values_B.mean()
    return (values_B * batch.predicted_each).sum() / batch.predicted_each.sum().clamp_min(1)
