"""Tensors by name, whatever files they lie in, and files by their bytes.

A model that does not fit in memory is read block by block and written block by block. The parts that no method
touches (embeddings, heads, finished masks) move from file to file as bytes and are never held in memory.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cluster.store import durable
from tasks.models.files.layout import INDEX, SINGLE

LARGEST_SHARD = 5 * 10**9  # the size of shards on the hub
_CHUNK = 1 << 22
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Place(NamedTuple):
    """Where a tensor lies: the file, and its name there."""

    file: Path
    stored: str


class TensorFiles:
    """Tensors by name, wherever they lie: those of a model directory, or of one ``file`` in it. A tensor may go by another
    name here than in its file."""

    def __init__(self, directory: Path, file: str | None = None) -> None:
        self.directory = directory
        if file or (directory / SINGLE).exists():
            path = directory / (file or SINGLE)
            self.places = {name: Place(path, name) for name in header(path)[0]}
        elif (directory / INDEX).exists():
            weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
            self.places = {name: Place(directory / file, name) for name, file in weight_map.items()}
        else:
            raise ValueError(f"no safetensors weights in {directory}: neither {INDEX} nor {SINGLE}")
        self._headers: dict[Path, dict[str, dict]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def renamed(self, places: Mapping[str, Place]) -> TensorFiles:
        """The same directory, its tensors (or others) under other names."""
        other = copy.copy(self)
        other.places = dict(places)
        return other

    def files(self) -> list[Path]:
        """The files that the tensors lie in, sorted."""
        return sorted({place.file for place in self.places.values()})

    def entry(self, name: str) -> dict[str, Any]:
        """dtype, shape and data_offsets of a tensor, as its file's header states them."""
        file, stored = self.places[name]
        if file not in self._headers:
            self._headers[file] = header(file)[0]
        return self._headers[file][stored]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.entry(name)["shape"])

    def dtype(self, name: str) -> torch.dtype | None:
        """None where torch has no such type for weights."""
        return _DTYPES.get(self.entry(name)["dtype"])

    def read(self, names: Iterable[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """Copies of the named tensors: views would keep the whole file mapped."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.places[name].file, []).append(name)
        tensors = {}
        for path, wanted in by_file.items():
            with safe_open(path, "pt") as file:
                for name in wanted:
                    tensors[name] = file.get_tensor(self.places[name].stored).to(device, copy=True)
        return tensors

    def piece(self, name: str, start: int, count: int) -> torch.Tensor:
        """So many elements of a flattened tensor from ``start`` on; nothing else of it is read."""
        file, _ = self.places[name]
        dtype = self.dtype(name)
        assert dtype is not None, f"{name} is stored in a type that is no weight's"
        begin = self._begins(file) + self.entry(name)["data_offsets"][0] + start * dtype.itemsize
        with file.open("rb") as opened:
            opened.seek(begin)
            content = bytearray(opened.read(count * dtype.itemsize))
        return torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def _begins(self, file: Path) -> int:
        """Where a file's data begin: behind its header, whose length stands first."""
        with file.open("rb") as opened:
            return 8 + int.from_bytes(opened.read(8), "little")


def header(path: Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """A safetensors file's tensors, its metadata, and where its data begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    return entries, entries.pop("__metadata__", {}), 8 + size


def splice(pieces: Mapping[str, Place | torch.Tensor], output: Path, metadata: dict[str, str]) -> str:
    """Write one safetensors file out of tensors of others, byte for byte, and of tensors on the host, each under its name in
    ``pieces``; returns the file's sha256. The file is either not there or whole, even after a crash."""
    headers: dict[Path, tuple[dict, dict, int]] = {}
    entries, contents, offset = {}, list[Iterable[bytes | memoryview]](), 0
    for name, piece in pieces.items():
        if isinstance(piece, torch.Tensor):
            entry, size = {"dtype": _NAMES[piece.dtype], "shape": list(piece.shape)}, piece.nbytes
            contents.append([memoryview(piece.contiguous().view(-1).view(torch.uint8).numpy())])
        else:
            if piece.file not in headers:
                headers[piece.file] = header(piece.file)
            tensors, _, start = headers[piece.file]
            entry, (begin, end) = tensors[piece.stored], tensors[piece.stored]["data_offsets"]
            size = end - begin
            contents.append(_chunks(piece.file, start + begin, size))
        entries[name] = {**entry, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    half, digest = output.with_suffix(".half"), hashlib.sha256()
    with half.open("wb") as file, ThreadPoolExecutor(1) as beside:
        for chunk in chain([len(encoded).to_bytes(8, "little") + encoded], chain.from_iterable(contents)):
            hashed = beside.submit(digest.update, chunk)
            file.write(chunk)
            hashed.result()
    durable.put(half, output)
    return digest.hexdigest()


def write_shards(files: TensorFiles, directory: Path, largest: int = LARGEST_SHARD) -> None:
    """Write a model's weights the way the hub has them: one file, or several of at most ``largest`` bytes (one tensor may
    be larger) and an index."""
    shards: list[dict[str, Place]] = [{}]
    sizes = [0]
    for name, place in files.places.items():
        begin, end = files.entry(name)["data_offsets"]
        if shards[-1] and sizes[-1] + end - begin > largest:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = place
        sizes[-1] += end - begin
    if len(shards) == 1:
        splice(shards[0], directory / SINGLE, {"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        splice(shard, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    write_index(weight_map, sum(sizes), directory)


def write_index(weight_map: Mapping[str, str], size: int, directory: Path) -> None:
    """Say in which file of ``directory`` each tensor is; ``size`` is that of all in bytes."""
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX).write_text(json.dumps(content, indent=1))


def _chunks(path: Path, start: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as source:
        source.seek(start)
        while length > 0:
            chunk = source.read(min(_CHUNK, length))
            assert chunk, f"{path} is shorter than its header says"
            yield chunk
            length -= len(chunk)


def as_stored(edited: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """An edited tensor in the dtype of its source; what the edit left alone keeps every bit."""
    return torch.where(edited == source.to(edited.dtype), source, edited.to(source.dtype)).contiguous()


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file that is either not there or whole, even after a crash."""
    from safetensors.torch import save_file

    save_file(tensors, path.with_suffix(".half"), {"format": "pt"})
    durable.put(path.with_suffix(".half"), path)


def merge_parts(parts: list[Path], output: Path) -> None:
    """Join the per-block files of masks or extras into one; when there are none, nor is what an earlier attempt left there."""
    promises: dict[str, dict] = {}
    pieces: dict[str, Place] = {}
    for part in parts:
        entries, metadata, _ = header(part)
        promises |= json.loads(metadata.get("masks", "{}"))
        pieces |= {name: Place(part, name) for name in entries}
    if pieces:
        output.parent.mkdir(exist_ok=True)
        splice(pieces, output, {"masks": json.dumps(promises)} if promises else {"format": "pt"})
    else:
        output.unlink(missing_ok=True)
