"""Stream a model's decoder blocks, so that memory is one block plus the activations, whatever the depth.

:class:`BlockStream` takes blocks from safetensors files and writes them to a new model directory;
:class:`ResidentBlocks` offers the same of a model that is in memory. A walker sees no difference: it opens a block,
runs it, edits it, hands it back.

Shapes: B = batch, T = tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from tasks.formats.mask import Mask, load_masks, save_masks
from tasks.models.activations import Activations, Room
from tasks.models.capture import capture
from tasks.models.linears import Linear, decoder_blocks, find_linears
from tasks.models.memory import give_back
from tasks.models.shards import (
    EXTRAS,
    INDEX,
    MASKS,
    TensorFiles,
    copy_companions,
    header,
    merge_parts,
    settle,
    splice,
    write_durably,
    write_tensors,
)

Extras = dict[str, dict[str, torch.Tensor]]


class ResidentBlocks:
    """The blocks of a model in memory, edited in place."""

    durable = False     # whether blocks that were written outlive the process

    def __init__(self, model: nn.Module, masks: dict[str, Mask] | None = None, device: str = "cpu") -> None:
        self.model, self.device = model.eval(), device
        self.prefix, self.blocks = decoder_blocks(model)
        self.depth = len(self.blocks)
        self.linears = find_linears(model)
        self.masks, self.extras = dict(masks or {}), {}

    def linears_of(self, index: int) -> dict[str, Linear]:
        start = f"{self.prefix}.{index}."
        return {name: linear for name, linear in self.linears.items() if name.startswith(start)}

    def masks_of(self, index: int) -> dict[str, Mask]:
        return {name: self.masks[name] for name in self.linears_of(index) if name in self.masks}

    def read(self, index: int) -> nn.Module:
        # Weights that ``from_pretrained`` maps from a file are not aligned, and products of unaligned matrices differ
        # in the last bit from those of the copies a stream works on.
        for parameter in self.blocks[index].parameters():
            parameter.data = parameter.data.clone()
        return self.blocks[index]

    def release(self, block: nn.Module) -> None:
        """Drop a block that was read and shall not be written."""

    def write(
        self, index: int, block: nn.Module, masks: dict[str, Mask], extras: Extras, note: dict | None = None
    ) -> None:
        """Take back an edited block; ``note`` is what :meth:`finished` shall tell of it."""
        self.masks |= masks
        self.extras |= extras

    def finish(self) -> None:
        pass

    def capture(self, batches: Iterable[torch.Tensor], room: Room | None = None) -> Activations:
        """Run the tokens int64 [B, T] of each batch up to the first block."""
        return capture(self.model, self.blocks, batches, self.device, room)

    def finished(self) -> list[dict]:
        """What was noted of each block that an interrupted walk has written already."""
        return []


class BlockStream(ResidentBlocks):
    """The blocks of a model directory; each is read when its turn comes and written to ``output`` before the next.

    ``output`` becomes a model directory of its own: one shard per block, an index, config and tokenizer, and the masks
    and extras beside them. Without ``output`` the stream only reads. With ``parts``, a folder that outlives the process,
    a block that was written stays written, whatever happens next.
    """

    def __init__(
        self,
        directory: Path,
        output: Path | None = None,
        device: str = "cpu",
        scratch: Path | None = None,
        parts: Path | None = None,
    ) -> None:
        from tasks.models.checkpoint import module_named, skeleton

        if scratch:
            Path(scratch).mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(dir=scratch, prefix="winnow-blocks-")
        self.scratch, self.source, self.output = Path(self._temporary.name), Path(directory), output
        super().__init__(skeleton(self.source), device=device)
        if "quantization_config" in json.loads((self.source / "config.json").read_text()):
            raise ValueError(f"{directory} is quantized; choose the model it was made from")
        self.files = module_named(self.source, self.model, self.scratch)
        self.parts, self.durable = parts or self.scratch, parts is not None
        self.parts.mkdir(parents=True, exist_ok=True)
        self._mask_file = self.source / MASKS
        self._shards: dict[str, list[str]] = {}
        if output:
            output.mkdir(parents=True, exist_ok=True)

    def masks_of(self, index: int) -> dict[str, Mask]:
        return load_masks(self._mask_file, self.linears_of(index))

    def capture(self, batches: Iterable[torch.Tensor], room: Room | None = None) -> Activations:
        outer = [module for name, module in self.model.named_modules() if not self._inside(f"{name}.")]
        head = self.model.get_output_embeddings()
        names = [name for name in self.model.state_dict() if not self._inside(name) and name in self.files]
        skipped = {f"{name}." for name, module in self.model.named_modules() if module is head}
        try:
            self._rebuild_buffers(outer)
            self._load(self.model, "", [name for name in names if not name.startswith(tuple(skipped))], self.files)
            return super().capture(batches, room)
        finally:
            for module in outer:
                _to_meta(module)

    def read(self, index: int) -> nn.Module:
        return self._read(index, self.files)

    def finished(self) -> list[dict]:
        notes = []
        for index in range(self.depth if self.output else 0):
            note, shard = self.parts / f"done-{index:05d}", self.output / self._shard(index + 1)
            if not (note.exists() and shard.exists()):
                break
            self._shards[shard.name] = list(header(shard)[0])
            notes.append(json.loads(note.read_text()))
        return notes

    def read_finished(self, index: int) -> nn.Module:
        """A block as it was written; :meth:`release` it after use."""
        return self._read(index, TensorFiles(self.output, self._shard(index + 1)))

    def write(
        self, index: int, block: nn.Module, masks: dict[str, Mask], extras: Extras, note: dict | None = None
    ) -> None:
        prefix = f"{self.prefix}.{index}."
        if self.output:
            state = {prefix + name: value.cpu().contiguous() for name, value in block.state_dict().items()}
            write_tensors(state, self.output / self._shard(index + 1))
            self._shards[self._shard(index + 1)] = list(state)
            if masks:
                save_masks(masks, self.parts / f"masks-{index:05d}.half")
                settle(self.parts / f"masks-{index:05d}.half", self.parts / f"masks-{index:05d}")
            if extras:
                flat = {f"{name}:{key}": value.cpu().contiguous() for name, tensors in extras.items()
                        for key, value in tensors.items()}  # fmt: skip
                write_tensors(flat, self.parts / f"extras-{index:05d}")
            # Last, since it says that the rest is there.
            write_durably(json.dumps(note or {}).encode(), self.parts / f"done-{index:05d}")
        self.release(block)

    def release(self, block: nn.Module) -> None:
        for module in block.modules():
            _to_meta(module)

    def finish(self) -> None:
        if self.output:
            outer = [name for name in self.files if not self._inside(name)]
            splice(self.files.pieces(outer), self.output / self._shard(0), {"format": "pt"})
            self._shards[self._shard(0)] = outer
            size = sum((self.output / shard).stat().st_size for shard in self._shards)
            weight_map = dict(sorted((name, shard) for shard, names in self._shards.items() for name in names))
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (self.output / INDEX).write_text(json.dumps(index, indent=1))
            copy_companions(self.source, self.output)
            merge_parts(sorted(self.parts.glob("masks-*")), self.output / MASKS)
            merge_parts(sorted(self.parts.glob("extras-*")), self.output / EXTRAS)
        self._temporary.cleanup()

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self.depth + 1:05d}.safetensors"

    def _inside(self, name: str) -> bool:
        """Whether a name belongs to one of the blocks."""
        if not name.startswith(f"{self.prefix}."):
            return False
        number = name[len(self.prefix) + 1 :].partition(".")[0]
        return number.isdecimal() and int(number) < self.depth

    def _read(self, index: int, files: TensorFiles) -> nn.Module:
        block, prefix = self.blocks[index], f"{self.prefix}.{index}."
        give_back()     # the blocks before this one: by itself the heap grows with depth
        self._rebuild_buffers(list(block.modules()))
        self._load(block, prefix, [prefix + name for name in block.state_dict()], files)
        return block

    def _load(self, module: nn.Module, prefix: str, names: list[str], files: TensorFiles) -> None:
        wanted = module.state_dict()
        tensors = files.read(names, self.device)
        state = {}
        while tensors:
            name, tensor = tensors.popitem()
            state[name[len(prefix) :]] = tensor.to(wanted[name[len(prefix) :]].dtype)
        module.load_state_dict(state, strict=False, assign=True)

    def _rebuild_buffers(self, modules: list[nn.Module]) -> None:
        """Buffers no checkpoint holds (rotary frequencies) get their values the way ``from_pretrained`` gives them."""
        for module in modules:
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=self.device)
            if module._non_persistent_buffers_set:
                self.model._init_weights(module)


def _to_meta(module: nn.Module) -> None:
    """Drop a module's own tensors, keep their shapes."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to("meta")
