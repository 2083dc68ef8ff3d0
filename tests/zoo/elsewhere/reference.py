"""Wanda (arXiv 2306.11695) once more, from scratch: hooks in plain transformers, |weight| times the length of its input.

Block by block, each fed by the pruned blocks before it; a weight that ties goes before those to its right.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from case import Case, few
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

ROUTERS = ("gate", "router", "shared_expert_gate")


def masks_equal(case: Case, export: str) -> str:
    """The artifact's masks equal those computed here, to the last bit."""
    wanted = load_file(case.home / "masks.safetensors")
    wanted = {name.partition(":")[2]: keep.bool() for name, keep in wanted.items() if name.startswith(f"{export}:")}
    computed = prune(case, by_groups=export == "pruned")
    if odd := wanted.keys() ^ computed.keys():
        return f"not the same matrices: {few(odd)}"
    if odd := [name for name, keep in wanted.items() if not torch.equal(keep, computed[name])]:
        bits = sum(int((wanted[name] != computed[name]).sum()) for name in odd)
        return f"{bits} bits differ: {few(odd)}"
    return ""


@torch.no_grad()
def prune(case: Case, by_groups: bool) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(case.directory("source"), dtype="auto", experts_implementation="eager").eval()
    for parameter in model.parameters():  # products of unaligned matrices differ in the last bit
        parameter.data = parameter.data.clone()
    batches = [torch.tensor(batch) for batch in case.facts["calibration"]]
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    masks = {}
    for index, block in enumerate(blocks):
        squares = _observe(model, block, batches)
        for path, module in block.named_modules():
            for key, parameter, view in _prunable(path, module):
                norms = [squares[(module, key, expert)] for expert in range(len(view))]
                keep = torch.stack([_keep(matrix, norm, by_groups) for matrix, norm in zip(view, norms, strict=True)])
                view.mul_(keep)
                masks[f"{prefix}.{index}.{path}.{key}"] = keep if parameter.ndim == 3 else keep[0]
    return masks


def _prunable(path: str, module: nn.Module):
    """(name, parameter, its view as matrices [E, O, I]) of what is pruned in a module: no router, no convolution."""
    if path.rpartition(".")[2] in ROUTERS:
        return
    if isinstance(module, nn.Linear):
        yield "weight", module.weight, module.weight.data[None]
    elif isinstance(module, Conv1D):
        yield "weight", module.weight, module.weight.data.T[None]
    elif _stacked(module):
        for key in ("gate_up_proj", "down_proj"):
            stack = getattr(module, key)
            yield key, stack, stack.data.mT if module.is_transposed else stack.data


def _stacked(module: nn.Module) -> bool:
    return getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3


def _observe(model: nn.Module, block: nn.Module, batches: list[torch.Tensor]) -> dict:
    """The squares of every input feature of every matrix in a block, summed over all tokens."""
    squares: dict = defaultdict(float)

    def add(key: tuple, inputs: torch.Tensor) -> None:
        if inputs.numel():
            squares[key] = squares[key] + inputs.reshape(-1, inputs.shape[-1]).float().square().sum(0).double()

    def see(module: nn.Module, inputs: tuple) -> None:
        if _stacked(module):
            _see_experts(module, *inputs, add)
        else:
            add((module, "weight", 0), inputs[0])

    found = [module for module in block.modules() if isinstance(module, (nn.Linear, Conv1D)) or _stacked(module)]
    hooks = [module.register_forward_pre_hook(see) for module in found]
    for batch in batches:
        model(batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return squares


def _see_experts(module: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, add) -> None:
    """An expert's inputs are the tokens that chose it, those that did so first before those that did so second."""
    for expert, matrix in enumerate(module.gate_up_proj):
        inputs = hidden[(expert == chosen.T).nonzero()[:, 1]]
        if module.is_transposed:  # GPT-OSS: with biases, and a gate of its own
            inner = module._apply_gate(inputs @ matrix + module.gate_up_proj_bias[expert])
        else:
            gate, up = nn.functional.linear(inputs, matrix).chunk(2, dim=-1)
            inner = module.act_fn(gate) * up
        add((module, "gate_up_proj", expert), inputs)
        add((module, "down_proj", expert), inner)


def _keep(matrix: torch.Tensor, squares: torch.Tensor | float, by_groups: bool) -> torch.Tensor:
    """Half of each row lives, or two of every four neighbours in it. An expert that no token chose goes by magnitude."""
    norm = squares.sqrt().float() if isinstance(squares, torch.Tensor) else torch.ones(matrix.shape[-1])
    score = matrix.abs() * norm
    units = score.reshape(-1, 4) if by_groups else score
    lowest = units.argsort(dim=-1, stable=True)[:, : units.shape[-1] // 2]
    return torch.ones_like(units, dtype=torch.bool).scatter_(1, lowest, False).reshape(matrix.shape)
