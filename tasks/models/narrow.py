"""Models whose blocks have feed-forward networks of different widths: how one is made, and how it is loaded again.

transformers' configs know one width for all blocks. Ours adds a list, ``ffn_widths``; a model of such a config is the
stock class, its matrices cut to those widths before weights are loaded, so nothing needs code from elsewhere.

Shapes: D = hidden features, F = channels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tasks.formats.mask import Mask, load_masks, save_masks
from tasks.models.layout import MASKS, copy_companions
from tasks.models.linears import Linear, find_linears
from tasks.models.shards import TensorFiles, write_index
from tasks.models.structure import FeedForward, by_block, feed_forward

if TYPE_CHECKING:
    from transformers import PretrainedConfig

WIDTHS = "ffn_widths"


def narrowing(config: PretrainedConfig) -> Callable[[nn.Module], None] | None:
    """What cuts a fresh model of this config to its widths; None where all blocks have the stock one."""
    widths = getattr(config, WIDTHS, None)
    return partial(narrow, widths=widths) if widths else None


def narrow(model: nn.Module, widths: Sequence[int]) -> None:
    """Cut the feed-forward networks of a model without weights to ``widths``."""
    linears = find_linears(model)
    networks = _networks(linears)
    if len(networks) != len(widths):
        raise ValueError(f"{WIDTHS} gives {len(widths)} widths for {len(networks)} blocks")
    for network, width in zip(networks, widths, strict=True):
        for name in (*network.ups, network.down):
            module, axis = model.get_submodule(name.rpartition(".")[0]), int(name == network.down)
            shape = list(linears[name].shape)
            shape[axis] = width
            stored = linears[name].stored(torch.empty(shape, dtype=module.weight.dtype, device=module.weight.device))
            module.weight = nn.Parameter(stored.contiguous())
            if axis == 0 and module.bias is not None:
                module.bias = nn.Parameter(module.bias.data.new_empty(width))
            side = {("Linear", 0): "out_features", ("Linear", 1): "in_features", ("Conv1D", 0): "nf", ("Conv1D", 1): "nx"}
            setattr(module, side[type(module).__name__, axis], width)


def shrink(directory: Path, output: Path) -> list[int]:
    """Write the model in ``directory``, whose masks take whole channels, without those channels; the widths left."""
    from tasks.models.checkpoint import skeleton

    linears, masks = find_linears(skeleton(directory)), load_masks(directory / MASKS)
    widths, cuts = [], {}
    for network in _networks(linears):
        channels = masks[network.down].keep.any(0).nonzero()[:, 0]
        widths.append(len(channels))
        for name, axis in _axes(network, linears).items():
            cuts[name] = partial(torch.index_select, dim=axis, index=channels)
    _rewrite(TensorFiles(directory), cuts, output)
    copy_companions(directory, output, skip={"config.json"})
    config = json.loads((directory / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({**config, WIDTHS: widths}, indent=2))
    return widths


def widen(directory: Path, output: Path) -> None:
    """Write the model in ``directory`` with networks of the stock width, which any library loads: what is missing is filled
    up with channels of zeros, and masks count them as dead. It computes the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from tasks.models.checkpoint import skeleton

    linears = find_linears(skeleton(directory))
    output.mkdir(parents=True, exist_ok=True)
    copy_companions(directory, output, skip={"config.json"})
    config = json.loads((directory / "config.json").read_text())
    del config[WIDTHS]
    (output / "config.json").write_text(json.dumps(config, indent=2))
    with torch.device("meta"):
        stock = _networks(find_linears(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(output))))
    fills, masks = {}, load_masks(directory / MASKS)
    for narrowed, whole in zip(_networks(linears), stock, strict=True):
        missing = whole.width - narrowed.width
        for name, axis in _axes(narrowed, linears).items():
            fills[name] = partial(_fill, axis=axis, count=missing)
        for name in masks.keys() & {*narrowed.ups, narrowed.down}:
            keep = _fill(masks[name].keep, int(name == narrowed.down), missing)
            masks[name] = Mask.of(keep, masks[name].pattern, masks[name].sparsity)
    _rewrite(TensorFiles(directory), fills, output)
    if masks:
        save_masks(masks, output / MASKS)


def _axes(network: FeedForward, linears: dict[str, Linear]) -> dict[str, int]:
    """The axis the channels are on in each stored tensor of a network, biases included."""
    axes = {name: int(name == network.down) ^ linears[name].transposed for name in (*network.ups, network.down)}
    return axes | {f"{name.rpartition('.')[0]}.bias": 0 for name in network.ups}


def _fill(values: torch.Tensor, axis: int, count: int) -> torch.Tensor:
    shape = list(values.shape)
    shape[axis] = count
    return torch.cat([values, values.new_zeros(shape)], axis)


def _rewrite(files: TensorFiles, changes: dict[str, Callable[[torch.Tensor], torch.Tensor]], output: Path) -> None:
    """File by file, so that no more than one is in memory."""
    from safetensors.torch import save_file

    output.mkdir(parents=True, exist_ok=True)
    total = 0
    for path in files.files():
        state = files.read([name for name, place in files.places.items() if place.file == path])
        for name in state.keys() & changes.keys():
            state[name] = changes[name](state[name]).contiguous()
        save_file(state, output / path.name, {"format": "pt"})
        total += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_index({name: place.file.name for name, place in files.places.items()}, total, output)


def _networks(linears: dict[str, Linear]) -> list[FeedForward]:
    found = [feed_forward(block) for _, block in sorted(by_block(linears).items())]
    if None in found:
        raise ValueError(f"unsupported: block {found.index(None)} has not one feed-forward network of single matrices")
    return found
