"""How well a model predicts tokens, in memory that does not grow with the text: logits are made and scored in pieces.

A few sequences at a time, and of a sequence whose logits alone are too many, a few tokens. The blocks run once a sequence
either way. The model's own forward makes the logits, since some cap or scale them after the head: it is asked for a
slice of them while its blocks are stood in for by what they gave.

Shapes: B = sequences, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tasks.data.batch import IGNORED, Batch

HELD = 1 << 25  # logits held at once
SCORED = 1 << 22  # of them scored at once, in float32


def summed_loss(model: nn.Module, batch: Batch, forward: Callable[..., Any] | None = None) -> float:
    """Cross-entropy in nats of each next token that counts given its prefix, summed over the batch. ``forward`` is what to
    call where it is not the model itself, but an engine around it."""
    return float(summed_losses(model, batch, forward).sum())


@torch.no_grad()
def summed_losses(model: nn.Module, batch: Batch, forward: Callable[..., Any] | None = None) -> torch.Tensor:
    """The same of each sequence: float64 [B]."""
    losses_B: list[torch.Tensor] = []
    for rows, start, logits_BTV in logits_of(model, batch, forward):
        found_B = _score(logits_BTV, rows.following[:, start:])
        if start:  # more tokens of the sequences that came last
            losses_B[-1] += found_B
        else:
            losses_B.append(found_B)
    return torch.cat(losses_B)


def logits_of(
    model: nn.Module, batch: Batch, forward: Callable[..., Any] | None = None
) -> Iterator[tuple[Batch, int, torch.Tensor]]:
    """(sequences, first token, logits [B, T, V] from that token on), in pieces that depend on sizes alone."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    held = batch.tokens.shape[1] * vocabulary
    for rows in batch.split(max(1, HELD // held)):
        if held > HELD and forward is None and (stand_in := _stand_in(model, rows.tokens)):
            for start, logits_BTV in _piecewise(model, *stand_in, rows.tokens, max(1, HELD // vocabulary)):
                yield rows, start, logits_BTV
        else:
            yield rows, 0, (forward or model)(input_ids=rows.tokens, use_cache=False).logits


def _score(logits_BTV: torch.Tensor, next_BT: torch.Tensor) -> torch.Tensor:
    """The loss of the next tokens that there are logits for, summed over each sequence: float64 [B]. The last logits of a
    sequence have none. What is ignored costs nothing."""
    count, step = min(logits_BTV.shape[1], next_BT.shape[1]), max(1, SCORED // logits_BTV.shape[-1])
    total_B = torch.zeros(len(next_BT), dtype=torch.float64, device=next_BT.device)
    for row, (logits_TV, next_T) in enumerate(zip(logits_BTV[:, :count], next_BT[:, :count], strict=True)):
        for piece_TV, scored_T in zip(logits_TV.split(step), next_T.split(step), strict=True):
            losses_T = functional.cross_entropy(piece_TV.float(), scored_T, ignore_index=IGNORED, reduction="none")
            total_B[row] += losses_T.sum(dtype=torch.float64)
    return total_B


def _stand_in(model: nn.Module, tokens_BT: torch.Tensor) -> tuple[nn.Module, Any] | None:
    """What runs the blocks inside the model's forward, and what it gave; None where no logits of some tokens alone are to
    be had. The module is the base model or, in OPT, its decoder."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return None
    inner, given = model.base_model, []
    candidates = {inner, getattr(inner, "decoder", None)} - {model, None}
    last_T = torch.tensor([tokens_BT.shape[1] - 1], device=tokens_BT.device)  # a number would let blocks leave out the others
    with ExitStack() as hooks:
        for module in candidates:
            hooks.enter_context(module.register_forward_hook(lambda *called: given.append((called[0], called[-1]))))
        model(input_ids=tokens_BT, use_cache=False, logits_to_keep=last_T)
    return given[-1] if given else None  # the outermost ends last


def _piecewise(
    model: nn.Module, module: nn.Module, gave: Any, tokens_BT: torch.Tensor, step: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """(first token, logits [B, T, V]) of ``step`` tokens at a time, with ``module`` giving what it ``gave``."""
    module.forward = lambda *args, **fields: gave
    try:
        for start in range(0, tokens_BT.shape[1], step):
            wanted_T = torch.arange(start, min(start + step, tokens_BT.shape[1]), device=tokens_BT.device)
            yield start, model(input_ids=tokens_BT, use_cache=False, logits_to_keep=wanted_T).logits
    finally:
        del module.forward
