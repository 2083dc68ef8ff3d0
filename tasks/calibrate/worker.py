"""A worker of a data-parallel walk: it runs its own sequences through the blocks, hands what it observed to the walker, and
solves the matrices that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.calibrate.data_parallel import propagate
from tasks.calibrate.method import BlockMethod, Edit
from tasks.calibrate.observe import InputStatistic, Statistic
from tasks.calibrate.opened import Observers, observe, view_of
from tasks.calibrate.shared import Share, part_of
from tasks.methods import build
from tasks.models.stream.activations import MemoryBudget, OffloadedTensors
from tasks.models.stream.blocks import BlockStream

State = dict[str, torch.Tensor]


class CalibrationWorker:
    """One worker's sequences, with their hidden states between two blocks. ``payload``: model (a directory), scratch, device,
    activation_bytes, method ({name: fields} with its shelf), tokens (batches of token lists)."""

    def __init__(self, payload: Mapping[str, Any]) -> None:
        scratch = Path(payload["scratch"])
        shelf, spec = payload["method"]
        self.method = build(shelf, spec, BlockMethod)
        self.stream = BlockStream(Path(payload["model"]), None, payload["device"], scratch)
        memory = MemoryBudget(payload["activation_bytes"], scratch / "activations")
        with torch.no_grad():
            self.flow = self.stream.capture([torch.tensor(tokens) for tokens in payload["tokens"]], memory)
        self.dense = OffloadedTensors(memory)

    def observe(self, index: int) -> tuple[dict[str, InputStatistic], dict[str, Statistic]]:
        """Run the dense block: the statistics of these sequences, of inputs and of outputs."""
        observers = Observers(self.method.observer, self.method.output_observer)
        with torch.no_grad():
            block, linears = self.stream.read(index), self.stream.linears_of(index)
            seen = observe(block, index, self.flow, linears, self.stream.prefix, observers)
        self.dense = seen.dense
        return seen.statistics, seen.outputs

    def solve(self, index: int, share: Share) -> dict[str, Edit]:
        """Solve some of the matrices of the block that was observed last."""
        stream = self.stream
        with torch.no_grad():
            known = share.statistics, {}, share.allocation, share.pattern
            view = view_of(stream, stream.blocks[index], index, self.flow, *known)
            return self.method.solve(part_of(view, share.allocation.keys()))

    def advance(self, index: int, state: State) -> tuple[float, float]:
        """Run the edited block, given by its tensors, to feed the next; (squared change, squares) of its output."""
        with torch.no_grad():
            block = self.stream.blocks[index]
            if next(block.parameters()).is_meta:
                block = self.stream.read(index)
            block.load_state_dict({name: value.to(self.stream.device) for name, value in state.items()}, assign=True)
            measured = propagate(self.flow, block, index, self.dense)
            self.stream.release(block)
        return measured
