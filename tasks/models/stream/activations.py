"""The hidden states of the calibration set between two blocks: in memory as far as they fit, else in files.

128 sequences of 2048 tokens of a large model are gigabytes, twice over while a block is compared with its dense self.
A budget bounds what of that is held; the rest is written through a memory map and read back batch by batch, and the map
is dropped at once, so the pages do not stay with the process.

Shapes: B = batch, T = tokens, D = hidden features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


class MemoryBudget:
    """How many bytes of memory lists of tensors may take together; what does not fit lies in files of ``folder``."""

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        assert limit is None or folder is not None, "a limit needs a folder for what does not fit"
        self.limit, self.used, self.folder = limit, 0, folder
        self._numbers = itertools.count()

    def reserve(self, size: int) -> bool:
        if self.limit is not None and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def file(self) -> Path:
        assert self.folder is not None, "a limit comes with a folder"
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{next(self._numbers):08d}"


@dataclass(frozen=True)
class _OnDisk:
    path: Path
    shape: torch.Size
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        mapped = torch.from_file(str(self.path), shared=False, size=self.shape.numel(), dtype=self.dtype)
        return mapped.view(self.shape).clone()


class OffloadedTensors:
    """A list of tensors on the host, in the memory and the files of a :class:`MemoryBudget`."""

    def __init__(self, memory: MemoryBudget | None = None) -> None:
        self.memory, self._items = memory or MemoryBudget(), []

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self._items[index]
        return item.read() if isinstance(item, _OnDisk) else item

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))

    def append(self, tensor: torch.Tensor) -> None:
        self._items.append(None)
        self[len(self) - 1] = tensor

    def __setitem__(self, index: int, tensor: torch.Tensor) -> None:
        self._drop(index)
        if self.memory.reserve(_host_bytes(tensor, tensor.is_cuda)):
            self._items[index] = _to_host(tensor)
            return
        on_disk = _OnDisk(self.memory.file(), tensor.shape, tensor.dtype)
        mapped = torch.from_file(str(on_disk.path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        mapped.view(tensor.shape).copy_(tensor)
        self._items[index] = on_disk

    def clear(self) -> None:
        for index in range(len(self)):
            self._drop(index)
        self._items.clear()

    def _drop(self, index: int) -> None:
        item, self._items[index] = self._items[index], None
        if isinstance(item, _OnDisk):
            item.path.unlink()
        elif item is not None:
            self.memory.used -= _host_bytes(item, item.is_pinned())


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """What comes from a GPU into page-locked memory: from there and to there copies run several times as fast (a block of
    a 1.1B Llama on an H100, 131 k tokens: 0.5 s for the walk instead of 1.5)."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor) if tensor.is_cuda else tensor.cpu()


def _host_bytes(tensor: torch.Tensor, pinned: bool) -> int:
    """Page-locked memory comes in powers of two."""
    return 1 << (tensor.nbytes - 1).bit_length() if pinned else tensor.nbytes


@dataclass
class Activations:
    """What flows between the blocks: hidden states per batch, and per batch and block whatever else the block gets. Blocks may
    have to give theirs in a tuple, with as many values ``besides``."""

    hidden: OffloadedTensors
    calls: list[list[tuple[tuple, dict[str, Any]]]]
    device: str = "cpu"
    besides: int | None = None

    def run(self, block: nn.Module, index: int, first: int | None = None) -> Iterator[torch.Tensor]:
        """The block's output, batch by batch (of the ``first`` batches only), from the hidden states as they are now."""
        for batch in range(len(self.hidden))[:first]:
            args, kwargs = self.calls[batch][index]
            output = block(self.hidden[batch].to(self.device, non_blocking=True), *args, **kwargs)
            yield output if isinstance(output, torch.Tensor) else output[0]
