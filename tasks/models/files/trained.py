"""What a training stage writes: the weights it trained, one after the other as they come, and all else that its model came
with, as it was.

A model that began as a checkpoint keeps the checkpoint's config and companions, the dtype of every tensor, its buffers and
what it stores beside the architecture. One that began at random gets what transformers would save.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.formats.mask import Masks, save_masks
from tasks.models.build.surgery import FIELD, surgeries_of
from tasks.models.files.checkpoint import save_config, skeleton, skeleton_of
from tasks.models.files.layout import MASKS, copy_companions, tokenizer_files
from tasks.models.files.names import hub_names, own_names, usual_names, write_names
from tasks.models.files.shards import as_stored
from tasks.models.files.slots import Kind, Slots

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Origin:
    """A model before training. ``parameters`` says in which types and shapes they are stored, ``kept`` are its other tensors:
    persistent buffers, and what the architecture does not name. ``directory`` is None for a model that began at random."""

    directory: Path | None
    parameters: dict[str, Kind]
    kept: dict[str, torch.Tensor]
    names: list[str]

    @classmethod
    def of(cls, model: PreTrainedModel, directory: Path | None, scratch: Path) -> Origin:
        """Taken before an engine changes the model's dtypes, and after surgeries of what came from ``directory``."""
        parameters, tied = dict(model.named_parameters()), model.all_tied_weights_keys
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if directory is None:
            bare, state = skeleton_of(model.config), model.state_dict()
            dtypes = {name: value.dtype for name, value in bare.state_dict().items()}
            others = state.keys() - parameters.keys() - tied.keys()
            kinds = {name: Kind(dtypes[name], shape) for name, shape in shapes.items()}
            return cls(None, kinds, {name: state[name].to(dtypes[name], copy=True) for name in others}, usual_names(bare))
        files = own_names(directory, skeleton(directory), scratch / "converted")
        dtypes = {name: files.dtype(name if name in files else tied[name]) for name in shapes if name in files or name in tied}
        most = next(iter(dtypes.values()))  # for what a surgery has added since
        kinds = {name: Kind(dtypes.get(name, most), shape) for name, shape in shapes.items()}
        kept = files.read(name for name in files if name not in parameters and name not in tied)
        return cls(directory, kinds, kept, hub_names(directory))

    def write(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        model: PreTrainedModel,
        masks: Masks,
        tokenizer: Path | None,
        output: Path,
    ) -> None:
        """A model directory of trained ``weights``; ``tokenizer`` is a directory whose tokenizer replaces the origin's."""
        output.mkdir(parents=True, exist_ok=True)
        buffers = {name: as_stored(value.cpu(), self.kept[name]) for name, value in model.named_buffers() if name in self.kept}
        others = {**self.kept, **buffers}
        slots = Slots(self.parameters | {name: Kind(value.dtype, tuple(value.shape)) for name, value in others.items()}, output)
        for name, value in chain(weights, others.items()):
            slots.put(name, value)
        write_names(self.names, output)
        if self.directory is None:
            save_config(model.config, output)
        else:
            copy_companions(self.directory, output, tokenizer_files(self.directory) if tokenizer else ())
            _write_surgeries(model.config, output / "config.json")
        if tokenizer:
            copy_companions(tokenizer, output)
        if masks:
            save_masks(masks, output / MASKS)


def _write_surgeries(config: PretrainedConfig, path: Path) -> None:
    """Into a config file that is its source's own: what was done to the model since."""
    written = json.loads(path.read_text())
    if surgeries_of(config) != surgeries_of(written):
        path.write_text(json.dumps({**written, FIELD: getattr(config, FIELD)}, indent=2))
