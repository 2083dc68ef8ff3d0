"""The experts of a model: where they lie, which tensors are cut with them, and what each adds to the tokens routed to it.

Shapes: E = experts, N = tokens, D = hidden features, K = experts of a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.calibrate.whole import Whole
from tasks.models.find.linears import expert_count


def experts_of(whole: Whole) -> dict[int, nn.Module]:
    """The module that holds the fused experts of each block that has some; refused where no block has, or one has two."""
    found: dict[int, nn.Module] = {}
    for index, block in enumerate(whole.blocks):
        modules = [module for module in block.modules() if expert_count(module)]
        if len(modules) > 1:
            raise ValueError(f"unsupported: block {index} has {len(modules)} layers of experts")
        if modules:
            found[index] = modules[0]
    if not found:
        raise ValueError("unsupported: the model has no experts; choose depth or width")
    return found


def counts_of(whole: Whole) -> set[int]:
    """How many experts the blocks have that have some."""
    return {expert_count(module) or 0 for module in experts_of(whole).values()}


@torch.no_grad()
def weighted_norms(whole: Whole, experts: dict[int, nn.Module]) -> dict[int, torch.Tensor]:
    """Of each expert, the mean over the tokens routed to it of its gate's weight times the length of what it gives: float64
    [E], 0 of one that no token came to."""
    sums = {index: torch.zeros(expert_count(module) or 0, dtype=torch.float64) for index, module in experts.items()}
    counts = {index: torch.zeros_like(value) for index, value in sums.items()}

    def see(index: int) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            hidden, chosen_NK, weights_NK = _called_with(given, named)
            hidden_ND = hidden.flatten(0, -2)
            for expert in range(len(sums[index])):
                place_NK = chosen_NK == expert
                rows = place_NK.any(-1)
                if not bool(rows.any()):
                    continue
                alone = torch.full((int(rows.sum()), 1), expert, device=hidden_ND.device, dtype=chosen_NK.dtype)
                given_ND = module.forward(hidden_ND[rows], alone, torch.ones_like(alone, dtype=weights_NK.dtype))
                weight_N = (weights_NK * place_NK).sum(-1)[rows]
                sums[index][expert] += float((weight_N.float() * given_ND.float().norm(dim=-1)).sum(dtype=torch.float64))
                counts[index][expert] += int(rows.sum())

        return hook

    whole.watch([module.register_forward_hook(see(index), with_kwargs=True) for index, module in experts.items()])
    return {index: value / counts[index].clamp_min(1) for index, value in sums.items()}


def _called_with(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, the experts of each token, and their weights, as transformers calls its fused experts."""
    values = [*given, *named.values()]
    if len(values) != 3 or values[1].shape != values[2].shape or values[1].is_floating_point():
        raise ValueError("unsupported: the experts are not called with hidden states, numbers of experts and weights")
    return values[0], values[1], values[2]
