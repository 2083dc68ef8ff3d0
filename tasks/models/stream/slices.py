"""A stored model for ranks that each hold a part of it: its modules without memory, its weights by slices of the files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.models.build.building import builder, hollow
from tasks.models.build.deferred import Piece
from tasks.models.files.checkpoint import validate
from tasks.models.files.names import own_names
from tasks.models.files.shards import TensorFiles
from tasks.models.stream.materialise import rebuild_buffers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Slices:
    """(Name of a parameter or stored buffer, its ``Piece``): what is not asked for is not read."""

    def __init__(self, model: PreTrainedModel, files: TensorFiles) -> None:
        self.files, tied = files, model.all_tied_weights_keys
        named = dict([*model.named_parameters(), *model.named_buffers()])
        self.stored = {name: name if name in files else tied[name] for name in named if name in files or name in tied}

    def __iter__(self) -> Iterator[tuple[str, Piece]]:
        for name, stored in self.stored.items():
            yield name, partial(self._piece, stored)

    def _piece(self, stored: str, start: int, count: int) -> torch.Tensor:
        return self.files.piece(stored, start, count).float()


def sliced(directory: Path, scratch: Path) -> tuple[PreTrainedModel, Slices]:
    """The model in a directory, hollow, and its weights in float32; what has to be converted lies in ``scratch``."""
    from transformers import AutoConfig

    validate(directory)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        model = builder(config).from_config(config, dtype=torch.float32)
    slices = Slices(model, own_names(directory, model, scratch))
    rebuild_buffers(model, model.modules(), "cpu")
    return hollow(model), slices
