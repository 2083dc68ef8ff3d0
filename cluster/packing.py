"""What is said to a worker, apart from the tensors in it: those travel as they lie in memory, by whatever carries them best."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Described(NamedTuple):
    """A tensor that travels by itself. Equal numbers are one tensor."""

    number: int
    dtype: torch.dtype
    shape: torch.Size
    on_card: bool

    def empty(self) -> torch.Tensor:
        """Where it arrives: the same kind of device."""
        return torch.empty(self.shape, dtype=self.dtype, device="cuda" if self.on_card else "cpu")


def pack(value: Any) -> tuple[memoryview, list[torch.Tensor]]:
    """Anything that can be pickled without its tensors, and these in the order in which they are met."""
    packer = _Packer(file := io.BytesIO())
    packer.dump(value)
    return file.getbuffer(), packer.tensors


def unpack(packed: bytes | memoryview, take: Callable[[Described], torch.Tensor]) -> Any:
    """The value again; ``take`` is asked for each tensor once, in that order. Tensors keep who shares them."""
    return _Unpacker(io.BytesIO(packed), take).load()


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory, uint8 [bytes]."""
    return tensor.view(-1).view(torch.uint8)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return Described(self._numbers[id(value)], value.dtype, value.shape, value.is_cuda)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, take: Callable[[Described], torch.Tensor]) -> None:
        super().__init__(file)
        self._take, self._taken = take, list[torch.Tensor]()

    def persistent_load(self, said: Described) -> torch.Tensor:
        if said.number == len(self._taken):
            self._taken.append(self._take(said))
        return self._taken[said.number]
