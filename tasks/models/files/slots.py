"""The weight files of a model laid out before its tensors are there: each is written to its place as it comes, and dropped.

The bytes are those that ``save_torch_state_dict`` writes of all tensors at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from tasks.models.files.layout import SINGLE
from tasks.models.files.shards import LARGEST_SHARD, write_index

# safetensors sorts by type, the last of these first, then by name
_DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = {dtype: place for place, dtype in enumerate(reversed(_DTYPES))}


class Kind(NamedTuple):
    """A tensor, before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Slots:
    """A place in a model directory for each of some tensors; shards are filled in their order, up to ``largest`` bytes."""

    def __init__(self, tensors: Mapping[str, Kind], directory: Path, largest: int = LARGEST_SHARD) -> None:
        from huggingface_hub import split_state_dict_into_shards_factory

        self.tensors, self.places = tensors, dict[str, tuple[Path, int]]()
        split = split_state_dict_into_shards_factory(
            dict(tensors),
            get_storage_size=lambda kind: kind.bytes,
            filename_pattern=SINGLE.replace(".", "{suffix}."),
            max_shard_size=largest,
        )
        for file, names in split.filename_to_tensors.items():
            self._lay_out(directory / file, sorted(names, key=lambda name: (_ORDER[tensors[name].dtype], name)))
        if split.is_sharded:
            write_index(split.tensor_to_filename, split.metadata["total_size"], directory)

    def _lay_out(self, path: Path, names: list[str]) -> None:
        entries, offset = {}, 0
        for name in names:
            kind, end = self.tensors[name], offset + self.tensors[name].bytes
            entries[name] = {"dtype": _DTYPES[kind.dtype], "shape": list(kind.shape), "data_offsets": [offset, end]}
            self.places[name], offset = (path, offset), end
        header = {"__metadata__": {"format": "pt"}, **entries}
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        encoded += b" " * (-len(encoded) % 8)
        with path.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + offset)
        for name in names:
            self.places[name] = path, self.places[name][1] + 8 + len(encoded)

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor in its place, in the type that was foreseen."""
        kind, (path, offset) = self.tensors[name], self.places[name]
        assert tuple(tensor.shape) == kind.shape, f"{name} is {list(tensor.shape)}, and {list(kind.shape)} was foreseen"
        content = tensor.detach().to("cpu", kind.dtype).contiguous().flatten().view(torch.uint8).numpy()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(memoryview(content))
