"""A model in memory and the calibration text, for pruners that decide about all of it at once.

Shapes: B = sequences, T = tokens, D = hidden features, I = input features of a matrix, H = heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from tasks.data.batch import Batch
from tasks.models.find.linears import Linear, decoder_blocks, find_linears
from tasks.models.find.structure import Attention, FeedForward, attention, by_block, feed_forward
from tasks.models.scoring import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


NONE: Mapping[str, torch.Tensor] = {}


@dataclass
class Whole:
    """``model`` is left as it is by every question. ``told`` hears how far a long one has come."""

    model: PreTrainedModel
    batches: Sequence[Batch]
    told: Callable[[int, int], None] = lambda done, total: None

    @cached_property
    def linears(self) -> dict[int, dict[str, Linear]]:
        return by_block(find_linears(self.model))

    @property
    def prefix(self) -> str:
        return decoder_blocks(self.model)[0]

    @property
    def blocks(self) -> nn.ModuleList:
        return decoder_blocks(self.model)[1]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def networks(self) -> list[FeedForward]:
        """The feed-forward network of each block; refused where one has none."""
        found = [feed_forward(linears) for _, linears in sorted(self.linears.items())]
        if None in found:
            raise ValueError(f"unsupported: block {found.index(None)} has not one feed-forward network of single matrices")
        return [network for network in found if network]

    def attentions(self) -> list[Attention]:
        """The attention of each block, its queries, keys and values in matrices of their own; refused where one has none."""
        found = []
        for index, linears in sorted(self.linears.items()):
            one = attention(linears, self.blocks[index], f"{self.prefix}.{index}.")
            if one is None or len(one.rows) != 3:
                raise ValueError(f"unsupported: block {index} has no attention with queries, keys and values in three matrices")
            found.append(one)
        return found

    @torch.no_grad()
    def loss(self, without: Collection[int] = (), silent: Mapping[str, torch.Tensor] = NONE) -> float:
        """Mean next-token cross-entropy on the calibration text, blocks left out, and of what some matrices read what is 0 in
        ``silent``."""
        with skipped(self.blocks, without), silenced(self.model, silent):
            total = sum(summed_loss(self.model, batch.to(self.device)) for batch in self.batches)
        return total / sum(batch.predicted for batch in self.batches)

    @torch.no_grad()
    def influences(self) -> list[float]:
        """Of each block, 1 less the cosine of what enters it and what leaves it, mean over the tokens."""
        sums, tokens = [0.0] * self.depth, sum(batch.tokens.numel() for batch in self.batches)

        def see(index: int):
            def hook(module: nn.Module, given: Any, named: Any, output: Any) -> None:
                before_BTD, after_BTD = hidden_of(given, named), output if isinstance(output, torch.Tensor) else output[0]
                cosine_BT = functional.cosine_similarity(before_BTD.float(), after_BTD.float(), dim=-1)
                sums[index] += float((1 - cosine_BT).sum(dtype=torch.float64))

            return hook

        hooks = [block.register_forward_hook(see(index), with_kwargs=True) for index, block in enumerate(self.blocks)]
        self.watch(hooks)
        return [value / tokens for value in sums]

    @torch.no_grad()
    def inputs(self, names: Collection[str], width: int = 1) -> dict[str, torch.Tensor]:
        """Of each of these matrices, the mean length of what it reads, ``width`` features together: float64 [I / width]."""
        sums: dict[str, torch.Tensor] = {}
        tokens = sum(batch.tokens.numel() for batch in self.batches)

        def see(name: str):
            def hook(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
                read = given[0].detach().float().flatten(0, -2).unflatten(-1, (-1, width)).norm(dim=-1)
                sums[name] = sums.get(name, 0) + read.sum(0, dtype=torch.float64)

            return hook

        owners = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in names}
        self.watch([owner.register_forward_pre_hook(see(name)) for name, owner in owners.items()])
        return {name: value / tokens for name, value in sums.items()}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def watch(self, hooks: Sequence[Any]) -> None:
        """Run the text through the model once, and take the hooks off it."""
        with ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook)
            for done, batch in enumerate(self.batches, 1):
                self.model(input_ids=batch.tokens.to(self.device), use_cache=False)
                self.told(done, len(self.batches))


def hidden_of(given: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block is called with."""
    return given[0] if given else named["hidden_states"]


@contextmanager
def skipped(blocks: nn.ModuleList, without: Collection[int]) -> Iterator[None]:
    """Meanwhile these blocks give back what they are given, as a block of nothing would."""

    def passing(module: nn.Module, given: Any, named: Any, output: Any) -> Any:
        hidden_BTD = hidden_of(given, named)
        return hidden_BTD if isinstance(output, torch.Tensor) else type(output)((hidden_BTD, *output[1:]))

    with ExitStack() as hooks:
        for index in without:
            hooks.enter_context(blocks[index].register_forward_hook(passing, with_kwargs=True))
        yield


@contextmanager
def silenced(model: nn.Module, keeps: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Meanwhile these matrices read their inputs times ``keeps`` [I]."""

    def times(keep_I: torch.Tensor):
        return lambda module, given: (given[0] * keep_I.to(given[0].dtype), *given[1:])

    with ExitStack() as hooks:
        for name, keep_I in keeps.items():
            owner = model.get_submodule(name.rpartition(".")[0])
            hooks.enter_context(owner.register_forward_pre_hook(times(keep_I)))
        yield
