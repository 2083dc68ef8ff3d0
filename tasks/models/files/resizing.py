"""Model directories written anew in other sizes: without the channels that masks took, and without a surgery.

Tensors are changed one by one and files rewritten one by one, so no more than one file is in memory. Masks and the config
follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tasks.formats.mask import Mask, Masks, load_masks, save_masks
from tasks.methods import build, dump
from tasks.models.build.surgery import FIELD, surgeries_of
from tasks.models.files.checkpoint import skeleton, skeleton_of
from tasks.models.files.layout import MASKS, SINGLE, copy_companions
from tasks.models.files.shards import TensorFiles, write_index
from tasks.models.find.linears import Linear, find_linears
from tasks.models.find.structure import channel_axes, feed_forwards

Changes = Mapping[str, Callable[[torch.Tensor], torch.Tensor | None]]


def shrink(directory: Path, output: Path) -> list[int]:
    """Write the model in ``directory``, whose masks take whole channels, without those channels; the widths left."""
    linears, masks = find_linears(skeleton(directory)), load_masks(directory / MASKS)
    widths, cuts = [], {}
    for network in feed_forwards(linears):
        channels = masks[network.down].keep.any(0).nonzero()[:, 0]
        widths.append(len(channels))
        for name, axis in channel_axes(network, linears).items():
            cuts[name] = partial(torch.index_select, dim=axis, index=channels)
    config = json.loads((directory / "config.json").read_text())
    narrow = dump(build("surgeries", {"narrow": {"widths": widths}}))
    _begin(directory, {**config, FIELD: [*config.get(FIELD, []), narrow]}, output)
    _rewrite(TensorFiles(directory), cuts, output)
    return widths


def undo_last(directory: Path, output: Path) -> None:
    """Write the model in ``directory`` without the last of its surgeries, one that can be undone. It computes the same."""
    from transformers import AutoConfig

    config = json.loads((directory / "config.json").read_text())
    *earlier, last = surgeries_of(config)
    listed = {FIELD: [dump(surgery) for surgery in earlier]} if earlier else {}
    _begin(directory, {name: value for name, value in config.items() if name != FIELD} | listed, output)
    model, files = skeleton(directory), TensorFiles(directory)
    changes = last.undo(model, skeleton_of(AutoConfig.from_pretrained(output)), lambda name: files.read([name])[name])
    _rewrite(files, changes, output)
    if masks := _changed(load_masks(directory / MASKS), changes, find_linears(model)):
        save_masks(masks, output / MASKS)


def _begin(directory: Path, config: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    copy_companions(directory, output, skip={"config.json"})
    (output / "config.json").write_text(json.dumps(config, indent=2))


def _changed(masks: Masks, changes: Changes, linears: Mapping[str, Linear]) -> dict[str, Mask]:
    found = dict(masks)
    for name in masks.keys() & changes.keys():
        mask = found.pop(name)
        if (keep := changes[name](linears[name].stored(mask.keep))) is not None:
            found[name] = Mask.of(linears[name].matrix(keep), mask.pattern, mask.sparsity)
    return found


def _rewrite(files: TensorFiles, changes: Changes, output: Path) -> None:
    from safetensors.torch import save_file

    total, places = 0, {}
    for path in files.files():
        state = files.read([name for name, place in files.places.items() if place.file == path])
        for name in state.keys() & changes.keys():
            if (changed := changes[name](state.pop(name))) is not None:
                state[name] = changed.contiguous()
        save_file(state, output / path.name, {"format": "pt"})
        places |= dict.fromkeys(state, path.name)
        total += sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if set(places.values()) != {SINGLE}:  # a loader takes one or the other
        write_index(places, total, output)
