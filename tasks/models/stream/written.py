"""The blocks that a walk has written: one shard each, and what it takes to trust them after a crash.

Beside a GPU a block is written by a thread while the next is computed; the walk waits for it before it gives it another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch

from cluster.store import durable
from tasks.formats.mask import Mask, save_masks
from tasks.models.files.layout import EXTRAS, MASKS
from tasks.models.files.shards import Place, TensorFiles, as_stored, header, merge_parts, splice, write_index, write_tensors
from tasks.models.stream.background import Background
from tasks.models.stream.kept import hashes, keep, kept

Extras = dict[str, dict[str, torch.Tensor]]


class WrittenBlocks:
    """Blocks ``prefix``.0 ... of the model in ``source``, edited, in ``output``; notes, masks and extras lie in ``parts``."""

    def __init__(self, source: TensorFiles, output: Path, parts: Path, prefix: str, depth: int, device: str) -> None:
        self.source, self.output, self.parts, self.prefix, self.depth = source, output, parts, prefix, depth
        self._shards: dict[str, list[str]] = {}
        self._thread = Background(device)
        self._last: Callable[[], None] = lambda: None  # waits until the last block is written
        output.mkdir(parents=True, exist_ok=True)

    def finished(self) -> list[dict]:
        """What was noted of each block that is there already, in every bit."""
        notes = []
        for index in range(self.depth):
            done, shard = kept(self.parts / f"done-{index:05d}"), self.output / self._shard(index + 1)
            if done is None or done["files"] != self._hashes(index):  # killed before, or damaged since
                break
            self._shards[shard.name] = list(header(shard)[0])
            notes.append(done["note"])
        return notes

    def files(self, index: int) -> TensorFiles:
        """A block's tensors."""
        return TensorFiles(self.output, self._shard(index + 1))

    def write(self, index: int, edited: dict[str, torch.Tensor], masks: dict[str, Mask], extras: Extras, note: dict) -> None:
        """Write a block of which these tensors were edited, wherever they lie. What an earlier one failed with is raised here,
        or by :meth:`finish`."""
        self._last()
        self._last = self._thread.give(partial(self._write, index, self._thread.fetch(edited), masks, extras, note))

    def finish(self, outer: dict[str, Place]) -> None:
        """Write what lies outside the blocks, the index, and all masks and extras as one file each."""
        self._last()
        splice(outer, self.output / self._shard(0), {"format": "pt"})
        self._shards[self._shard(0)] = list(outer)
        size = sum((self.output / shard).stat().st_size for shard in self._shards)
        write_index({name: shard for shard, names in self._shards.items() for name in names}, size, self.output)
        merge_parts(sorted(self.parts.glob("masks-*")), self.output / MASKS)
        merge_parts(sorted(self.parts.glob("extras-*")), self.output / EXTRAS)

    def _write(
        self, index: int, edited: Callable[[], dict[str, torch.Tensor]], masks: dict[str, Mask], extras: Extras, note: dict
    ) -> None:
        digest = self._write_weights(index, edited(), {name for name, beside in extras.items() if "scale" in beside})
        if masks:
            save_masks(masks, self.parts / f"masks-{index:05d}.half")
            durable.put(self.parts / f"masks-{index:05d}.half", self.parts / f"masks-{index:05d}")
        if extras:
            flat = {f"{name}:{key}": value.cpu().contiguous() for name, of_it in extras.items() for key, value in of_it.items()}
            write_tensors(flat, self.parts / f"extras-{index:05d}")
        # Last, since it says that the rest is there.
        files = {self._shard(index + 1): digest, **hashes(self._beside(index))}
        keep({"note": note, "files": files}, self.parts / f"done-{index:05d}")

    def _write_weights(self, index: int, edited: dict[str, torch.Tensor], on_a_grid: Collection[str]) -> str:
        """The digest of the shard. What lies on a grid stays on it: in another dtype its values would be no longer its codes
        times its scales."""
        prefix, shard = f"{self.prefix}.{index}.", self._shard(index + 1)
        pieces: dict[str, Place | torch.Tensor] = {
            name: place if name not in edited else edited[name] if name in on_a_grid else self._as_stored(name, edited[name])
            for name, place in self.source.places.items()
            if name.startswith(prefix)
        }
        assert edited.keys() <= pieces.keys(), "what is edited has a place in the source"
        self._shards[shard] = list(pieces)
        return splice(pieces, self.output / shard, {"format": "pt"})

    def _as_stored(self, name: str, edited: torch.Tensor) -> torch.Tensor:
        """An edited tensor in the dtype its source has on disk; what the edit left alone keeps every bit of it."""
        if self.source.dtype(name) in (None, edited.dtype):
            return edited.contiguous()
        return as_stored(edited, self.source.read([name])[name])

    def _hashes(self, index: int) -> dict[str, str]:
        """Digests of what there is of a block."""
        return hashes([self.output / self._shard(index + 1), *self._beside(index)])

    def _beside(self, index: int) -> list[Path]:
        return [self.parts / f"masks-{index:05d}", self.parts / f"extras-{index:05d}"]

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self.depth + 1:05d}.safetensors"
