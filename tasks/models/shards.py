"""Tensors by name, whatever files they lie in, and files by their bytes.

A model that does not fit in memory is read block by block and written block by block. The parts that no method
touches (embeddings, heads, finished masks) move from file to file as bytes and are never held in memory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MASKS = "masks.safetensors"
EXTRAS = "extras.safetensors"
_CHUNK = 1 << 22


class TensorFiles:
    """The weights of a model directory, or of one ``file`` in it."""

    def __init__(self, directory: Path, file: str | None = None) -> None:
        self.directory = directory
        if file:
            self.files = dict.fromkeys(header(directory / file)[0], directory / file)
        elif (directory / INDEX).exists():
            self.files = {
                name: directory / file
                for name, file in json.loads((directory / INDEX).read_text())["weight_map"].items()
            }
        elif (directory / SINGLE).exists():
            self.files = dict.fromkeys(header(directory / SINGLE)[0], directory / SINGLE)
        else:
            raise ValueError(f"no safetensors weights in {directory}: neither {INDEX} nor {SINGLE}")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def read(self, names: Iterable[str], device: str = "cpu") -> dict[str, torch.Tensor]:
        """Copies of the named tensors: views would keep the whole file mapped."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        tensors = {}
        for path, wanted in by_file.items():
            with safe_open(path, "pt") as file:
                for name in wanted:
                    tensors[name] = file.get_tensor(name).to(device, copy=True)
        return tensors

    def pieces(self, names: Iterable[str]) -> list[tuple[Path, str]]:
        """Where the named tensors lie, for :func:`splice`."""
        return [(self.files[name], name) for name in names]


def header(path: Path) -> tuple[dict[str, dict], dict[str, str], int]:
    """A safetensors file's tensors, its metadata, and where its data begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(size))
    return entries, entries.pop("__metadata__", {}), 8 + size


def splice(pieces: Iterable[tuple[Path, str]], output: Path, metadata: dict[str, str]) -> int:
    """Write one safetensors file out of tensors of others, byte for byte; returns the bytes of the tensors."""
    headers: dict[Path, tuple[dict, dict, int]] = {}
    entries, sources, offset = {}, [], 0
    for path, name in pieces:
        if path not in headers:
            headers[path] = header(path)
        tensors, _, start = headers[path]
        begin, end = tensors[name]["data_offsets"]
        entries[name] = {**tensors[name], "data_offsets": [offset, offset + end - begin]}
        sources.append((path, start + begin, end - begin))
        offset += end - begin
    encoded = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with output.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for path, start, length in sources:
            _copy(path, start, length, file)
    return offset


def _copy(path: Path, start: int, length: int, output) -> None:
    with path.open("rb") as source:
        source.seek(start)
        while length > 0:
            chunk = source.read(min(_CHUNK, length))
            assert chunk, f"{path} is shorter than its header says"
            output.write(chunk)
            length -= len(chunk)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file that is either not there or whole, even after a crash."""
    from safetensors.torch import save_file

    save_file(tensors, path.with_suffix(".half"), {"format": "pt"})
    settle(path.with_suffix(".half"), path)


def write_durably(content: bytes, path: Path) -> None:
    path.with_suffix(".half").write_bytes(content)
    settle(path.with_suffix(".half"), path)


def settle(half: Path, path: Path) -> None:
    """Give a file that was written under another name its own, once the disk has it."""
    with half.open("rb") as file:
        os.fsync(file.fileno())
    half.replace(path)


def merge_parts(parts: list[Path], output: Path) -> None:
    """Join the per-block files of masks or extras into one; nothing when there are none."""
    promises: dict[str, dict] = {}
    pieces = []
    for part in parts:
        entries, metadata, _ = header(part)
        promises |= json.loads(metadata.get("masks", "{}"))
        pieces += [(part, name) for name in entries]
    if pieces:
        splice(pieces, output, {"masks": json.dumps(promises)} if promises else {"format": "pt"})


_COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "*.model", "*.jinja", "*.tiktoken", "chat_template*",
)  # fmt: skip


def copy_companions(source: Path, output: Path, skip: frozenset[str] | set[str] = frozenset()) -> None:
    """Copy what a model needs beside its weights: config and tokenizer. An allow-list, so no record travels along."""
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if file.name not in skip:
                shutil.copyfile(file, output / file.name)
