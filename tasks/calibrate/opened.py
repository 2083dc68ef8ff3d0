"""One block, read and run: its matrices, the masks it came with, and the statistics its observers took while it ran dense.

The walker opens a block to edit it, an allocator only to read it.

Shapes: B = batch, T = tokens, D = hidden features, O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from tasks.calibrate.data_parallel import merge
from tasks.calibrate.method import BlockView
from tasks.calibrate.observe import InputStatistic, Statistic
from tasks.calibrate.watch import Make, MakeOutput, Watch, complete, require_finite, watch_outputs
from tasks.formats.mask import Mask
from tasks.formats.pattern import Pattern
from tasks.models.find.linears import Linear
from tasks.models.stream.activations import Activations, OffloadedTensors
from tasks.models.stream.blocks import ResidentBlocks
from tasks.workers import Worker


class Observers(NamedTuple):
    """What makes the observers of a block: of its matrices' inputs, and of its modules' outputs."""

    inputs: Make
    outputs: MakeOutput = lambda name, module: None

    def watched(self, linears: Mapping[str, Linear]) -> dict[str, Linear]:
        return {name: linear for name, linear in linears.items() if self.inputs(linear) is not None}


class Seen(NamedTuple):
    """What they saw, of inputs by matrix name and of outputs by module name, and what the block put out."""

    statistics: dict[str, InputStatistic]
    outputs: dict[str, Statistic]
    dense: OffloadedTensors


@dataclass
class OpenBlock:
    """``dense`` are the outputs of the block as it came; ``unseen`` the matrices that no token reached."""

    view: BlockView
    parameters: dict[str, torch.Tensor]
    masks: dict[str, Mask]
    dense: OffloadedTensors
    unseen: list[str]


def open_block(
    stream: ResidentBlocks,
    index: int,
    flow: Activations,
    observers: Observers,
    allocation: Mapping[str, float],
    pattern: Pattern,
    workers: Sequence[Worker] = (),
) -> OpenBlock:
    """Read a block, and run it where there is data. ``allocation`` gives a sparsity per parameter; ``workers`` run their own
    sequences meanwhile."""
    pending = [worker.call("observe", index) for worker in workers]
    block, linears = stream.read(index), stream.linears_of(index)
    own = observe(block, index, flow, linears, stream.prefix, observers)
    statistics, outputs = own.statistics, own.outputs
    for answer in pending:  # one after the other, so that no more than one worker's lie here beside the sums
        others = answer.result()
        statistics, outputs = merge([statistics, others[0]]), merge([outputs, others[1]])
        del others
    unseen = complete(statistics, observers.watched(linears), observers.inputs, stream.device)
    require_finite(outputs)
    by_matrix = {matrix: allocation[name] for name, linear in linears.items() for matrix in linear.matrices}
    view = view_of(stream, block, index, flow, statistics, outputs, by_matrix, pattern)
    parameters = {view.prefix + name: parameter.data for name, parameter in block.named_parameters()}
    return OpenBlock(view, parameters, stream.masks_of(index), own.dense, unseen)


def view_of(
    stream: ResidentBlocks,
    block: torch.nn.Module,
    index: int,
    flow: Activations,
    statistics: dict[str, InputStatistic],
    outputs: dict[str, Statistic],
    allocation: dict[str, float],
    pattern: Pattern,
) -> BlockView:
    """A block that was read as a method sees it; ``allocation`` gives a sparsity per matrix."""
    prefix, linears = f"{stream.prefix}.{index}.", stream.linears_of(index)
    parameters = {prefix + name: parameter.data for name, parameter in block.named_parameters()}
    matrices, keep = _matrices(linears, parameters, stream.masks_of(index))
    run = partial(flow.run, block, index)
    return BlockView(index, prefix, linears, matrices, keep, statistics, outputs, allocation, pattern, block, flow.hidden, run)


def observe(
    block: torch.nn.Module, index: int, flow: Activations, linears: dict[str, Linear], prefix: str, observers: Observers
) -> Seen:
    """Run the dense block, observed."""
    dense = OffloadedTensors(flow.hidden.memory)
    watched = observers.watched(linears)
    parameters = {f"{prefix}.{index}.{name}": parameter.data for name, parameter in block.named_parameters()}
    watch = Watch(watched, parameters, observers.inputs)
    with watch if watched else torch.no_grad(), watch_outputs(block, observers.outputs) as outputs:
        for output_BTD in flow.run(block, index):
            dense.append(output_BTD)
            watch.next_batch()
    return Seen(watch.statistics, {f"{prefix}.{index}.{name}": seen for name, seen in outputs.items()}, dense)


def _matrices(
    linears: dict[str, Linear], parameters: dict[str, torch.Tensor], masks: Mapping[str, Mask]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The block's matrices as [O, I] views of its parameters, and the masks of those that have one."""
    matrices, keep = {}, {}
    for name, linear in linears.items():
        whole, mask = linear.matrix(parameters[name]), masks[name].keep if name in masks else None
        for matrix, expert in linear.matrices.items():
            matrices[matrix] = whole if expert is None else whole[expert]
            if mask is not None:
                keep[matrix] = (mask if expert is None else mask[expert]).to(whole.device)
    return matrices, keep
