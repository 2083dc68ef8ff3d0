"""Record what flows into a model's decoder blocks, without running one of them; and go on from what came out of the last.

What a block gets besides the hidden states (masks, rotary embeddings, positions) differs between architectures. It is
recorded, not rebuilt: the model runs once with every block replaced by a recorder that passes its input on, so no
architecture has to be known by name, and the blocks themselves may still be without weights.

Shapes: B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tasks.models.stream.activations import Activations, MemoryBudget, OffloadedTensors


class _Captured(Exception):
    """The last block was reached: what follows it is not needed."""


class _BrokenChain(Exception):
    """A block did not get exactly what the block before it returned."""


class _HandedOn(Exception):
    """A block was given what another returned besides the hidden states."""


class _Untold:
    """Stands in for what a block returns besides the hidden states, such as weights of attention. No block may be given it."""


MOST_BESIDES = 3  # of such values, that the blocks of any architecture return


class _Recorder(nn.Module):
    """Stands in for a block: notes its arguments, hands the hidden states on, lends the block's attributes. A block returns
    them alone, or (``besides``) in a tuple with as many other values."""

    def __init__(self, block: nn.Module, note: Callable, besides: int | None) -> None:
        super().__init__()
        self.__dict__.update(stand_in_for=block, note=note, besides=besides)

    def __getattr__(self, name: str):
        return getattr(self.__dict__["stand_in_for"], name)

    def forward(self, *args, **kwargs):
        hidden_BTD = args[0] if args else kwargs.pop("hidden_states")
        self.note(hidden_BTD, args[1:], kwargs)
        return self.returned(hidden_BTD)

    def returned(self, hidden_BTD: torch.Tensor):
        return hidden_BTD if self.besides is None else (hidden_BTD, *(_Untold() for _ in range(self.besides)))


class _Ended(_Recorder):
    """Stands in for a block when all of them have run: gives what came out of the last."""

    def __init__(self, block: nn.Module, hidden_BTD: torch.Tensor, besides: int | None) -> None:
        super().__init__(block, lambda *given: None, besides)
        self.__dict__["hidden_BTD"] = hidden_BTD

    def forward(self, *args, **kwargs):
        return self.returned(self.hidden_BTD)


@contextmanager
def _stood_in_for(blocks: nn.ModuleList, stand_in: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    """Meanwhile a model runs with ``stand_in`` of each block in its place."""
    whole = blocks._modules
    blocks._modules = {name: stand_in(block) for name, block in blocks.named_children()}
    try:
        yield
    finally:
        blocks._modules = whole


def conclude(model: nn.Module, blocks: nn.ModuleList, tokens_BT: torch.Tensor, flow: Activations, batch: int) -> torch.Tensor:
    """The logits [B, T, V] of a batch whose hidden states in ``flow`` are those behind the last of ``blocks``."""
    hidden_BTD = flow.hidden[batch].to(flow.device)
    with _stood_in_for(blocks, lambda block: _Ended(block, hidden_BTD, flow.besides)):
        return model(tokens_BT.to(flow.device), use_cache=False).logits


def capture(
    model: nn.Module, blocks: nn.ModuleList, batches: Iterable[torch.Tensor], device: str, memory: MemoryBudget | None = None
) -> Activations:
    """Run the tokens int64 [B, T] of each batch up to the first of ``blocks``, which are part of ``model``."""
    batches, problem = list(batches), ""
    for besides in (None, *range(1 + MOST_BESIDES)):  # what blocks return is seen by what the model takes
        try:
            return _capture(model, blocks, batches, device, memory, besides)
        except _BrokenChain as broken:
            problem = str(broken)
        except _HandedOn:
            problem = "whose blocks hand on more than hidden states"
            break
    raise ValueError(f"unsupported: {type(model).__name__}, {problem}")


def _capture(
    model: nn.Module,
    blocks: nn.ModuleList,
    batches: list[torch.Tensor],
    device: str,
    memory: MemoryBudget | None,
    besides: int | None,
) -> Activations:
    flow = Activations(OffloadedTensors(memory), [], device, besides)
    known: dict[tuple, list[torch.Tensor]] = {}
    depth, calls, entered = len(blocks), [], []

    def note(hidden_BTD: torch.Tensor, args: tuple, kwargs: dict[str, Any]) -> None:
        if calls and not _same(entered[0], hidden_BTD):
            raise _BrokenChain(f"whose block {len(calls)} does not follow straight on the one before")
        entered[:] = [hidden_BTD]
        calls.append(_shared((args, kwargs), known))
        if len(calls) == depth:
            raise _Captured

    with _stood_in_for(blocks, lambda block: _Recorder(block, note, besides)):
        for tokens_BT in batches:
            calls = []
            try:
                model(tokens_BT.to(device), use_cache=False)
            except (ValueError, IndexError) as error:
                if not calls:
                    raise
                raise _BrokenChain(f"whose blocks return more than hidden states ({error})") from error
            except _Captured:
                flow.hidden.append(entered[0])
                flow.calls.append(calls)
    return flow


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a tensor is another, or a view of the whole of it: some models slice hidden states with nothing to cut."""
    return one is other or (
        (one.shape, one.dtype, one.stride(), one.data_ptr()) == (other.shape, other.dtype, other.stride(), other.data_ptr())
    )


def _shared(value: Any, known: dict[tuple, list[torch.Tensor]]) -> Any:
    """The same structure with equal tensors made one: masks and rotary embeddings repeat from batch to batch."""
    if isinstance(value, torch.Tensor):
        alike = known.setdefault((value.shape, value.dtype), [])
        for other in alike:
            if other is value or torch.equal(other, value):
                return other
        alike.append(value)
        return value
    if isinstance(value, _Untold):
        raise _HandedOn
    if type(value) in (tuple, list):
        return type(value)(_shared(item, known) for item in value)
    if type(value) is dict:
        return {key: _shared(item, known) for key, item in value.items()}
    return value
