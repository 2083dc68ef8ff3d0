"""The loss of a micro-batch chunk after chunk of its tokens, so that its logits are never all there.

In float32 they are the largest tensor of a training step: 8 sequences of 2048 tokens over 128 000 words are 8 GiB, which
softmax and gradient hold several times over. A chunk's logits are made, scored, differentiated and dropped before the next
chunk's are made; what stays is the gradient of the hidden states and one of the head's parameters, so nothing is computed
twice. Where parameters are whole only while a module runs (ZeRO-3) autograd has to meet them there: each chunk is
checkpointed, and its logits made a second time in the backward pass.

Shapes: B = sequences, T = tokens, N = predicted tokens, C = tokens of a chunk, D = hidden features, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tasks.data.batch import IGNORED, Batch
from tasks.train.compiled import kernel
from tasks.train.engine import Answer, Engine
from tasks.train.head import Head
from tasks.train.losses import Likely, predicted, predicting

Terms = dict[str, torch.Tensor]
Scored = tuple[torch.Tensor, Terms]
Score = Callable[[torch.Tensor, torch.Tensor | Likely | None, torch.Tensor], Scored]


class Scoring:
    """How a formula over tokens is applied to batches: at once, or, where their float32 logits are more than
    ``logits_bytes``, in chunks; as it is written or ``compiled``, which reads each logit twice instead of ten times."""

    def __init__(self, formula: Score, logits_bytes: int | None = None, compiled: bool = False) -> None:
        def score(student_NV: torch.Tensor, teacher: torch.Tensor | Likely | None, following_N: torch.Tensor) -> Scored:
            return formula(student_NV.float(), teacher.float() if isinstance(teacher, torch.Tensor) else teacher, following_N)

        self.score = kernel(score) if compiled else score
        self.logits_bytes = logits_bytes

    def of(self, engine: Engine, batch: Batch) -> Answers:
        if self.logits_bytes is None:
            return Answers(self.score, engine, batch, None)
        config: Any = engine.module.config
        chunk = max(1, self.logits_bytes // (4 * config.get_text_config(decoder=True).vocab_size))
        return Answers(self.score, engine, batch, chunk if chunk < batch.tokens.numel() else None)


class Answers:
    """What student and teacher say of a batch: their logits, or with a ``chunk`` the hidden states that no more logits than
    those of so many tokens at a time are made of."""

    def __init__(self, score: Score, engine: Engine, batch: Batch, chunk: int | None) -> None:
        self.score, self.engine, self.batch, self.chunk = score, engine, batch, chunk
        self.said: list[Answer] = []
        self.heads: list[Head] = []

    def of_student(self, asked: Mapping[str, object]) -> Answer:
        return self._ask(self.engine.forward, Head(self.engine.module) if self.chunk else None, asked)

    def of_teacher(self, teacher: nn.Module, asked: Mapping[str, object]) -> Answer:
        return self._ask(teacher, Head(teacher) if self.chunk else None, asked)

    def _ask(self, forward: Callable[..., Answer], head: Head | None, asked: Mapping[str, object]) -> Answer:
        with head.listening() if head else nullcontext():
            self.said.append(forward(**asked))
        self.heads += [head] if head else []
        return self.said[-1]

    def scored(self, written: Likely | None = None) -> Scored:
        """The mean over the tokens that count; what was ``written`` down stands for the teacher's logits."""
        if self.chunk is not None:
            return chunked(self.score, self.heads, self.batch, self.chunk, self.engine.sharded, written)
        student_NV, *told = [predicting(answer.logits, self.batch) for answer in self.said]
        return self.score(student_NV, written or (told[0] if told else None), predicted(self.batch))


def chunked(
    score: Score, heads: Sequence[Head], batch: Batch, chunk: int, sharded: bool, written: Likely | None = None
) -> Scored:
    """What ``score`` says of all predicted tokens, a mean, from no more than ``chunk`` of them at a time.

    The heads, the student's and perhaps a teacher's, have listened to a forward pass on the batch. ``sharded``: parameters
    are whole only while a module runs.
    """
    states, following_N, sums = [_predicting(head, batch) for head in heads], predicted(batch), Terms()
    count = max(1, len(following_N))
    size = ceil(count / ceil(count / chunk))  # as equal as can be
    # a head in pieces is gathered for each, so there are as many on every rank, some of no token, whatever counts there
    end = max(count, size * ceil(batch.following.numel() / chunk)) if sharded else count
    parts = [slice(start, start + size) for start in range(0, end, size)]

    def of_part(states_CD: torch.Tensor, part: slice) -> Scored:
        """A chunk's share of the means."""
        with torch.no_grad():
            told = [head.logits(told_ND[part]) for head, told_ND in zip(heads[1:], states[1:], strict=True)]
        teacher = written.part(part) if written else told[0] if told else None
        loss, terms = score(heads[0].logits(states_CD), teacher, following_N[part])
        return loss * (len(states_CD) / count), {name: value * (len(states_CD) / count) for name, value in terms.items()}

    def add(terms: Terms) -> None:
        for name, value in terms.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()

    if not sharded:
        with heads[0].precision():  # around all chunks, so that a weight is rounded once
            return _Chunks.apply(of_part, add, parts, states[0], *heads[0].parameters()), sums
    losses = []
    for part in parts:
        loss, terms = checkpoint(of_part, states[0][part], part, use_reentrant=False)
        losses.append(loss)
        add(terms)
    return torch.stack(losses).sum(), sums


def _predicting(head: Head, batch: Batch) -> torch.Tensor:
    """The hidden states that predict a token that counts, [N, D]."""
    assert head.states_BTD is not None, "it has listened"
    states_BTD = head.states_BTD[:, :-1]
    return states_BTD.flatten(0, 1) if batch.labels is None else states_BTD[batch.following != IGNORED]


class _Chunks(torch.autograd.Function):
    """The sum over chunks, whose gradients are taken on the way: the backward pass has only to scale them."""

    @staticmethod
    def forward(ctx: Any, of_part, add, parts: Sequence[slice], states_ND, *parameters) -> torch.Tensor:
        total = torch.zeros((), device=states_ND.device)
        towards_ND = torch.empty_like(states_ND)
        sums: list[torch.Tensor | None] = [None] * len(parameters)
        for part in parts:
            with torch.enable_grad():
                states_CD = states_ND[part].detach().requires_grad_()
                loss, terms = of_part(states_CD, part)
            towards_ND[part], *found = torch.autograd.grad(loss, [states_CD, *parameters], allow_unused=True)
            for index, gradient in enumerate(found):
                before = sums[index]
                if gradient is not None:  # summed in float32, whatever the parameter's type
                    sums[index] = gradient.float() if before is None else before.add_(gradient)
            total += loss.detach()
            add(terms)
        ctx.gradients = (towards_ND, *sums)
        ctx.types = [states_ND.dtype, *[parameter.dtype for parameter in parameters]]
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor):
        found, ctx.gradients = ctx.gradients, None  # once: they are scaled where they lie
        pairs = zip(found, ctx.types, strict=True)
        return None, None, None, *[None if each is None else each.mul_(gradient).to(kind) for each, kind in pairs]
