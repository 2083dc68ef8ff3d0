"""Stream a model's decoder blocks, so that memory is one block plus the activations, whatever the depth.

:class:`BlockStream` takes blocks from safetensors files and writes them to a new model directory;
:class:`ResidentBlocks` offers the same of a model that is in memory. A walker sees no difference: it opens a block,
runs it, edits it, hands it back.

Shapes: B = batch, T = tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from tasks.formats.mask import Mask, load_masks
from tasks.models.files.layout import MASKS, NAMES, copy_companions
from tasks.models.files.names import own_names, write_names
from tasks.models.files.shards import TensorFiles
from tasks.models.find.linears import Linear, decoder_blocks, find_linears
from tasks.models.memory import give_back
from tasks.models.stream.activations import Activations, MemoryBudget
from tasks.models.stream.background import Background
from tasks.models.stream.capture import capture, conclude
from tasks.models.stream.materialise import materialise, rebuild_buffers, tie, to_meta
from tasks.models.stream.written import Extras, WrittenBlocks


class ResidentBlocks:
    """The blocks of a model in memory, edited in place."""

    durable = False  # whether blocks that were written outlive the process
    source: Path  # where they come from, and where what is durable lies
    parts: Path

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

    def read_finished(self, index: int) -> nn.Module:
        """A block as it was written; :meth:`release` it after use."""
        return self.read(index)

    def release(self, block: nn.Module) -> None:
        """Drop a block that was read and shall not be written."""

    def write(
        self,
        index: int,
        block: nn.Module,
        masks: dict[str, Mask],
        extras: Extras,
        changed: Collection[str] = (),
        note: dict | None = None,
    ) -> None:
        """Take back a block of which the parameters named in ``changed`` were edited; ``note`` is what :meth:`finished` shall
        tell of it."""
        self.masks |= masks
        self.extras |= extras

    def finish(self) -> None:
        pass

    def capture(self, batches: Iterable[torch.Tensor], memory: MemoryBudget | None = None) -> Activations:
        """Run the tokens int64 [B, T] of each batch up to the first block."""
        with self.outside(head=False):
            return capture(self.model, self.blocks, batches, self.device, memory)

    @contextmanager
    def outside(self, head: bool = True) -> Iterator[None]:
        """Have the weights that lie outside the blocks in memory, those of the head where it is asked for."""
        yield

    def logits(self, batches: Iterable[torch.Tensor], memory: MemoryBudget | None = None) -> Iterator[torch.Tensor]:
        """Of each batch of tokens int64 [B, T] the model's logits [B, T, V]; one block after the other runs for all of them."""
        batches = list(batches)
        flow = self.through(batches, memory)
        with self.outside():
            for number, tokens_BT in enumerate(batches):
                yield conclude(self.model, self.blocks, tokens_BT, flow, number)

    def through(self, batches: Iterable[torch.Tensor], memory: MemoryBudget | None = None) -> Activations:
        """Run the tokens int64 [B, T] of each batch through all blocks as they were read; what came out of the last."""
        flow = self.capture(batches, memory)
        for index in range(self.depth):
            block = self.read(index)
            for batch, output_BTD in enumerate(flow.run(block, index)):
                flow.hidden[batch] = output_BTD
            self.release(block)
        return flow

    def finished(self) -> list[dict]:
        """What was noted of each block that an interrupted walk has written already."""
        return []


class BlockStream(ResidentBlocks):
    """The blocks of a model directory; each is read when its turn comes and written to ``output`` before the next.

    ``output`` becomes a model directory of its own: one shard per block, an index, the source's companions, and the masks
    and extras beside them. What was not edited is copied from the source, byte for byte. Without ``output`` the stream
    only reads. With ``parts``, a folder that outlives the process, a block that was written stays written, whatever
    happens next.
    """

    def __init__(
        self,
        directory: Path,
        output: Path | None = None,
        device: str = "cpu",
        scratch: Path | None = None,
        parts: Path | None = None,
    ) -> None:
        from tasks.models.files.checkpoint import skeleton

        if scratch:
            Path(scratch).mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(dir=scratch, prefix="winnow-blocks-")
        self.scratch, self.source, self.output = Path(self._temporary.name), Path(directory), output
        super().__init__(skeleton(self.source), device=device)
        if "quantization_config" in json.loads((self.source / "config.json").read_text()):
            raise ValueError(f"{directory} is quantized; choose the model it was made from")
        self.files = own_names(self.source, self.model, self.scratch / "converted")
        self.parts, self.durable = parts or self.scratch, parts is not None
        self.parts.mkdir(parents=True, exist_ok=True)
        self._mask_file = self.source / MASKS
        self._reader, self._ahead = Background(device), {}  # a block that is read before its turn
        self._written = WrittenBlocks(self.files, output, self.parts, self.prefix, self.depth, device) if output else None

    def masks_of(self, index: int) -> dict[str, Mask]:
        return load_masks(self._mask_file, self.linears_of(index))

    @contextmanager
    def outside(self, head: bool = True) -> Iterator[None]:
        outer = [module for name, module in self.model.named_modules() if not self._inside(f"{name}.")]
        last = None if head else self.model.get_output_embeddings()
        names = [name for name in self.model.state_dict() if not self._inside(name) and name in self.files]
        skipped = {f"{name}." for name, module in self.model.named_modules() if module is last}
        try:
            rebuild_buffers(self.model, outer, self.device)
            loaded = [name for name in names if not name.startswith(tuple(skipped))]
            materialise(self.model, "", self.files.read(loaded, self.device), self.device)
            if head:
                tie(self.model)
            yield
        finally:
            for module in outer:
                to_meta(module)

    def read(self, index: int) -> nn.Module:
        ahead = self._ahead.pop(index, None)
        block = self._read(index, ahead() if ahead else self.files.read(self._names(index), self.device))
        if self._reader and index + 1 < self.depth:
            self._ahead = {index + 1: self._reader.give(partial(self._read_ahead, index + 1))}
        return block

    def _read_ahead(self, index: int) -> dict[str, torch.Tensor]:
        """In page-locked memory, from which a GPU copies at once."""
        return {name: value.pin_memory() for name, value in self.files.read(self._names(index)).items()}

    def _names(self, index: int) -> list[str]:
        """Of the block's tensors that have a value of their own."""
        prefix = f"{self.prefix}.{index}."
        return [prefix + name for name in self.blocks[index].state_dict()]

    def finished(self) -> list[dict]:
        return self._written.finished() if self._written else []

    def read_finished(self, index: int) -> nn.Module:
        assert self._written, "a stream without an output has finished nothing"
        return self._read(index, self._written.files(index).read(self._names(index), self.device))

    def write(
        self,
        index: int,
        block: nn.Module,
        masks: dict[str, Mask],
        extras: Extras,
        changed: Collection[str] = (),
        note: dict | None = None,
    ) -> None:
        if self._written:
            prefix, state = f"{self.prefix}.{index}.", block.state_dict()
            edited = {name: state[name.removeprefix(prefix)] for name in sorted(changed)}
            self._written.write(index, edited, masks, extras, note or {})
        self.release(block)

    def release(self, block: nn.Module) -> None:
        for module in block.modules():
            to_meta(module)

    def finish(self) -> None:
        if self._written:
            self._written.finish({name: self.files.places[name] for name in self.files if not self._inside(name)})
            copy_companions(self.source, self.output)
            if not (self.source / NAMES).exists():
                write_names(TensorFiles(self.source), self.output)
        self._temporary.cleanup()

    def _inside(self, name: str) -> bool:
        """Whether a name belongs to one of the blocks."""
        if not name.startswith(f"{self.prefix}."):
            return False
        number = name[len(self.prefix) + 1 :].partition(".")[0]
        return number.isdecimal() and int(number) < self.depth

    def _read(self, index: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
        block = self.blocks[index]
        give_back()  # the blocks before this one: by itself the heap grows with depth
        rebuild_buffers(self.model, block.modules(), self.device)
        materialise(block, f"{self.prefix}.{index}.", tensors, self.device)
        return block
