"""Model directories written anew with fewer blocks, channels, heads or hidden features: plain models, told by their config.

Tensors are cut one file at a time. Which of a tensor's axes a cut is on follows from what it is to its block: a matrix that
reads the hidden states, one that writes them, or anything else of their width, as embeddings, norms and heads are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.models.cut import Cut
from tasks.models.files.checkpoint import skeleton, skeleton_of
from tasks.models.files.layout import NAMES, copy_companions
from tasks.models.files.names import hub_names, own_names, write_names
from tasks.models.files.shards import TensorFiles, write_index, write_tensors
from tasks.models.find.linears import Linear, decoder_blocks, expert_count, find_linears, routers_of
from tasks.models.find.structure import attention, by_block, channel_axes, feed_forward

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Axes = dict[str, list[tuple[int, torch.Tensor]]]  # what stays on which axis of a tensor
WIDTHS = ("ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size")  # what configs call a network's width

NUMBERED = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs")  # lists in configs of layers' numbers
LISTED = ("intermediate_size", "activation_sparsity_pattern", "indexer_types")  # and with an entry for each, untold by name
BY_NUMBER = "per_layer_config"  # what differs in a layer, by its number
# How many layers, from the first on, are of another kind.
FIRST = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
LAST = ("num_kv_shared_layers",)  # and how many up to the last
EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts")  # and how many experts there are


def recut(directory: Path, output: Path, scratch: Path, cut: Cut) -> None:
    """Write what ``cut`` leaves of the model in ``directory``."""
    model = skeleton(directory)
    files, axes, numbers = own_names(directory, model, scratch / "own"), axes_of(model, cut), _numbers(model, cut)
    output.mkdir(parents=True, exist_ok=True)
    copy_companions(directory, output, skip={"config.json", NAMES})
    config = json.loads((directory / "config.json").read_text())
    (output / "config.json").write_text(json.dumps(config_of(config, model, cut), indent=2))
    prefix = decoder_blocks(model)[0]
    names = {name: renumbered(name, prefix, numbers) for name in files}
    _write(files, axes, {name: new for name, new in names.items() if new}, output)
    write_names(_hub_names(hub_names(directory), prefix.rpartition(".")[2], numbers, cut), output)


def _hub_names(names: list[str], leaf: str, numbers: Mapping[int, int], cut: Cut) -> list[str]:
    """What the tensors that stay are called on the hub, where each expert may have some of its own."""
    left = [name for one in names if (name := renumbered(one, leaf, numbers))]
    if not cut.experts:
        return left
    count = len(next(iter(cut.experts.values())))
    return [name for name in left if not (found := re.search(r"\.experts\.(\d+)\.", name)) or int(found.group(1)) < count]


def check_sizes(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """The skeleton that a cut leaves of one; ValueError where transformers has no model of this type in such sizes."""
    kind, numbers, prefix = model.config.model_type, _numbers(model, cut), decoder_blocks(model)[0]
    try:
        given = config_of(model.config.to_dict(), model, cut)
        smaller = skeleton_of(type(model.config).from_dict(given))
    except Exception as error:  # the code of a model, and the checks of its config, say it in their own ways
        raise ValueError(
            f"unsupported: {kind} cannot have the sizes that would be left ({' '.join(str(error).split())[:200]}); "
            "choose another sparsity, or another multiple"
        ) from error
    axes, state = axes_of(model, cut), {name: tensor.shape for name, tensor in smaller.state_dict().items()}
    for name, tensor in model.state_dict().items():
        shape = list(tensor.shape)
        for axis, index in axes.get(name, ()):
            shape[axis] = len(index)
        new = renumbered(name, prefix, numbers)
        if new and list(state.pop(new, ())) != shape:
            raise ValueError(f"unsupported: no config tells a {kind} that is smaller so ({name} would be {shape})")
    if state:
        raise ValueError(
            f"unsupported: no config tells a {kind} that is smaller so (nothing is left for its {next(iter(state))})"
        )
    return smaller


def _write(files: TensorFiles, axes: Axes, names: Mapping[str, str], output: Path) -> None:
    places, total = {}, 0
    for number, path in enumerate(files.files(), 1):
        here = [name for name in names if files.places[name].file == path]
        if not here:
            continue
        file = f"model-{number:05d}-of-{len(files.files()):05d}.safetensors"
        state = {}
        for name, tensor in files.read(here).items():
            for axis, index in axes.get(name, ()):
                tensor = tensor.index_select(axis, index)
            state[names[name]] = tensor.contiguous()
        write_tensors(state, output / file)
        places |= dict.fromkeys(state, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    write_index(places, total, output)


def _numbers(model: PreTrainedModel, cut: Cut) -> dict[int, int]:
    """The number that each block that stays has from now on."""
    kept = range(len(decoder_blocks(model)[1])) if cut.blocks is None else cut.blocks
    return {old: new for new, old in enumerate(kept)}


def renumbered(name: str, prefix: str, numbers: Mapping[int, int]) -> str | None:
    """A parameter's name with its block's new number; None where its block went."""
    found = re.search(rf"(?:^|\.){re.escape(prefix)}\.(\d+)\.", name)
    if not found:
        return name
    new = numbers.get(int(found.group(1)))
    return None if new is None else f"{name[: found.start(1)]}{new}{name[found.end(1) :]}"


def axes_of(model: PreTrainedModel, cut: Cut) -> Axes:
    """Where each tensor is cut, by the model's own names."""
    axes: Axes = {}
    linears, (prefix, blocks) = find_linears(model), decoder_blocks(model)
    for index, block in by_block(linears).items():
        if cut.channels and (network := feed_forward(block)):
            for name, axis in channel_axes(network, linears).items():
                axes.setdefault(name, []).append((axis, cut.channels[index]))
        if cut.groups and (found := attention(block, blocks[index], f"{prefix}.{index}.")):
            groups = min(found.rows.values())
            for name, count in found.rows.items():
                rows = _spread(cut.groups[index], count // groups * found.head_width)
                _add(axes, linears[name], 0, rows, bias=True)
            columns = _spread(cut.groups[index], found.heads // groups * found.head_width)
            _add(axes, linears[found.output], 1, columns)
    if cut.hidden is not None:
        _cut_hidden(axes, model, linears, cut.hidden)
    for index, kept in cut.experts.items():
        axes |= {f"{prefix}.{index}.{name}": [(0, kept)] for name in _of_experts(blocks[index])}
    return {name: found for name, found in axes.items() if name in model.state_dict()}


def _of_experts(block: nn.Module) -> Iterator[str]:
    """Names in a block of what has an entry for each expert: all that is fused, and all of the router that has as many."""
    routers, counts = routers_of(block), [count for module in block.modules() if (count := expert_count(module))]
    for path, module in block.named_modules():
        own = list(module.named_parameters(recurse=False)) + list(module.named_buffers(recurse=False))
        if expert_count(module) or any(id(tensor) in routers for _, tensor in own):
            yield from (f"{path}.{name}" for name, tensor in own if tensor.ndim and len(tensor) == counts[0])


def _cut_hidden(axes: Axes, model: PreTrainedModel, linears: Mapping[str, Linear], kept_D: torch.Tensor) -> None:
    """Of the matrices the side that reads or writes the hidden states; of all else every last axis of that width."""
    (prefix, blocks), width = decoder_blocks(model), model.config.get_text_config(decoder=True).hidden_size
    inner = set()
    for index, block in by_block(linears).items():
        network, found = feed_forward(block), attention(block, blocks[index], f"{prefix}.{index}.")
        writers = {network and network.down, found and found.output}
        for name, linear in block.items():
            _add(axes, linear, 0 if name in writers else 1, kept_D, bias=name in writers)
            inner |= {name, f"{name.rpartition('.')[0]}.bias"}
    for name, tensor in model.state_dict().items():
        if name not in inner and tensor.ndim and tensor.shape[-1] == width:
            axes.setdefault(name, []).append((tensor.ndim - 1, kept_D))


def _add(axes: Axes, linear: Linear, side: int, kept: torch.Tensor, bias: bool = False) -> None:
    """Cut the outputs (side 0) or the inputs (1) of a matrix, and what is added to its outputs."""
    axes.setdefault(linear.name, []).append((side ^ linear.transposed, kept))
    if bias:
        axes.setdefault(f"{linear.name.rpartition('.')[0]}.bias", []).append((0, kept))


def _spread(kept: torch.Tensor, width: int) -> torch.Tensor:
    """The numbers of all features of some units of ``width`` features."""
    return (kept[:, None] * width + torch.arange(width)).flatten()


def _of_layers(told: Mapping[str, Any], depth: int, blocks: tuple[int, ...]) -> dict[str, Any]:
    """What a config says of its ``depth`` layers, as it is said of those that stay."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if name in NUMBERED and value is not None:
            found[name] = [new for new, old in enumerate(blocks) if old in value]
        elif name in FIRST and isinstance(value, int):
            found[name] = sum(old < value for old in blocks)
        elif name in LAST and isinstance(value, int):
            found[name] = sum(old >= depth - value for old in blocks)
        elif name == BY_NUMBER and value:
            own = {int(index): fields for index, fields in value.items()}
            found[name] = {str(new): own[old] for new, old in enumerate(blocks) if old in own}
        elif ("layer" in name or name in LISTED) and isinstance(value, list) and len(value) == depth:
            found[name] = [value[index] for index in blocks]
    return found


def config_of(config: dict[str, Any], model: PreTrainedModel, cut: Cut) -> dict[str, Any]:
    """The config with the sizes that a cut leaves. What it lists for each layer is cut too."""
    text = model.config.get_text_config(decoder=True)
    section = next((key for key in config if key.endswith("_config") and getattr(model.config, key, None) is text), None)
    found = dict(config[section] if section else config)

    def put(name: str, value: int) -> None:
        found[text.attribute_map.get(name, name)] = value

    if cut.blocks is not None:
        found |= _of_layers({**text.to_dict(), **found}, text.num_hidden_layers, cut.blocks)
        put("num_hidden_layers", len(cut.blocks))
    if cut.channels:
        named = [name for name in WIDTHS if hasattr(text, name)]
        if not named:
            raise ValueError("its config has no width of feed-forward networks")
        put(named[0], len(cut.channels[0]))
    if cut.groups or cut.hidden is not None:
        heads = text.num_attention_heads
        groups = getattr(text, "num_key_value_heads", None) or heads
        put("head_dim", getattr(text, "head_dim", None) or text.hidden_size // heads)
        if cut.groups:
            put("num_attention_heads", heads // groups * len(cut.groups[0]))
            put("num_key_value_heads", len(cut.groups[0]))
    if cut.hidden is not None:
        put("hidden_size", len(cut.hidden))
    if cut.experts:
        put(next(name for name in EXPERTS if hasattr(text, name)), len(next(iter(cut.experts.values()))))
    return {**config, section: found} if section else found
