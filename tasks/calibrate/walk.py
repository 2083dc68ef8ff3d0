"""The one calibration walker: block by block, observe, solve, check, assign, and run again to feed the next block.

Statistics come from the still-dense block fed by the already compressed prefix. Only this file assigns weights; what
a method returns is checked against its promise first. The masks a model comes with are handed to the method and kept.
A stream with durable parts resumes: blocks that an interrupted walk finished are only run, to feed those that follow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Literal

import torch

from tasks.calibrate.data_parallel import deal, propagate
from tasks.calibrate.ledger import identity, take_over
from tasks.calibrate.method import BlockMethod, BlockView, Edit
from tasks.calibrate.opened import Observers, open_block
from tasks.calibrate.report import BlockReport, WalkReport
from tasks.calibrate.shared import solve
from tasks.formats.mask import Mask
from tasks.formats.pattern import Pattern, Unstructured, parse_pattern
from tasks.models.find.linears import Linear
from tasks.models.memory import peak_bytes
from tasks.models.stream.activations import Activations, MemoryBudget, OffloadedTensors
from tasks.models.stream.blocks import Extras, ResidentBlocks
from tasks.workers import Worker

Unseen = Literal["magnitude", "dense"]


def walk(
    stream: ResidentBlocks,
    batches: Iterable[torch.Tensor],
    method: BlockMethod,
    *,
    sparsity: float | Mapping[str, float] = 0.0,
    pattern: Pattern | str = "unstructured",
    unseen: Unseen = "magnitude",
    memory: MemoryBudget | None = None,
    workers: Sequence[Worker] = (),
    on_block: Callable[[BlockReport], None] = lambda report: None,
) -> WalkReport:
    """Run ``method`` over every block of ``stream``; ``batches`` are tokens int64 [B, T].

    ``sparsity`` is one number or one per parameter name. Without batches only methods that need no data can run, and
    no error is measured. ``unseen`` is what is done to a matrix that no token reached: what the method does where all
    inputs are alike, for a pruner magnitude, or nothing. ``memory`` is the memory the activations may take. ``workers``
    hold the further parts that :func:`tasks.calibrate.data_parallel.deal` makes of the batches; this process takes the first.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern, getattr(method, "scope", "layer"))
    allocation = _allocation(stream.linears, sparsity)
    method.admit(stream.linears, allocation, pattern)
    batches = list(batches)
    if not batches and method.observes(stream.linears, stream.blocks):
        raise ValueError(f"{method.name} needs calibration data, and there is none")
    if stream.durable:
        take_over(stream.parts, identity(stream.source, batches, method, allocation, (str(pattern), unseen)))
    report = WalkReport([BlockReport(**note) for note in stream.finished()])
    with torch.no_grad():
        flow = stream.capture(deal(batches, 1 + len(workers))[0], memory)
        for index in range(stream.depth):
            if index < len(report.blocks):
                _pass(stream, index, flow, workers)
            else:
                report.blocks.append(_treat(stream, index, flow, method, allocation, pattern, unseen, workers))
            on_block(report.blocks[index])
        flow.hidden.clear()
        stream.finish()
    return report


def _pass(stream: ResidentBlocks, index: int, flow: Activations, workers: Sequence[Worker]) -> None:
    """Feed the next block through one that is finished."""
    block = stream.read_finished(index)
    _advance(block, index, flow, OffloadedTensors(), workers)
    stream.release(block)


def _advance(
    block: torch.nn.Module, index: int, flow: Activations, dense: OffloadedTensors, workers: Sequence[Worker]
) -> float | None:
    """Replace everybody's hidden states by the block's output; its relative squared error against ``dense``."""
    pending = [worker.call("advance", index, dict(block.state_dict())) for worker in workers]
    measured = len(dense) > 0
    parts = [propagate(flow, block, index, dense), *(answer.result() for answer in pending)]
    change, total = (sum(part[side] for part in parts) for side in (0, 1))
    return change / max(total, 1e-300) if measured else None


def _allocation(linears: Mapping[str, Linear], sparsity: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(linears, float(sparsity))
    if odd := sorted(linears.keys() ^ sparsity.keys()):
        raise ValueError(
            f"an allocation gives a sparsity to every linear and only those; {odd[0]} differs ({len(odd)} names in all)"
        )
    return dict(sparsity)


def _treat(
    stream: ResidentBlocks,
    index: int,
    flow: Activations,
    method: BlockMethod,
    allocation: Mapping[str, float],
    pattern: Pattern,
    unseen: Unseen,
    workers: Sequence[Worker],
) -> BlockReport:
    started = time.perf_counter()
    observers = Observers(method.observer, method.output_observer)
    opened = open_block(stream, index, flow, observers, allocation, pattern, workers)
    view, block = opened.view, opened.view.module
    edits = solve(method, view, workers)
    spared = [name for name in opened.unseen if unseen == "dense" and name in edits]
    edits |= {name: _spare(view, name) for name in spared}
    method.check(view, edits)
    masks = opened.masks | _new_masks(view.linears, edits, allocation, pattern, spared)
    extras = _extras(view, edits)
    _assign(opened.parameters, view.matrices, edits)
    error = _advance(block, index, flow, opened.dense, workers)
    densities = {name: 1 - masks[name].live / masks[name].numel for name in masks}
    notes = {name: dict(edit.notes) for name, edit in edits.items() if edit.notes}
    peak, seconds = peak_bytes(stream.device), time.perf_counter() - started
    counts = (len(view.matrices), *_counts(view, edits))
    report = BlockReport(index, stream.depth, densities, error, seconds, peak, opened.unseen, notes, *counts)
    stream.write(index, block, masks, extras, _edited(view.linears, edits), asdict(report))
    return report


def _spare(view: BlockView, name: str) -> Edit:
    """A matrix left as it came."""
    weight_OI = view.matrices[name]
    keep_OI = view.keep.get(name, torch.ones(weight_OI.shape, dtype=torch.bool, device=weight_OI.device))
    return Edit(weight_OI, keep_OI, promise=(Unstructured(), 0.0))


def _counts(view: BlockView, edits: Mapping[str, Edit]) -> tuple[int, float, int]:
    """(weights, asked, given) of the matrices that a sparsity was asked of; more that was dead before counts as asked for."""
    weights, asked, given = 0, 0.0, 0
    for name in view.matrices:
        keep_OI = edits[name].keep_OI if name in edits else None
        if keep_OI is not None and not edits[name].follows:
            wanted, dead = view.allocation[name] * keep_OI.numel(), int((~keep_OI).sum())
            weights, given = weights + keep_OI.numel(), given + dead
            asked += max(wanted, dead) if name in view.keep else wanted
    return weights, asked, given


def _new_masks(
    linears: dict[str, Linear],
    edits: Mapping[str, Edit],
    allocation: Mapping[str, float],
    pattern: Pattern,
    spared: Sequence[str],
) -> dict[str, Mask]:
    """The masks that were decided; of what was ``spared`` they promise nothing. Edits without one leave the weight's mask,
    and its promise, as they are."""
    masks = {}
    for name, linear in linears.items():
        found = [edits[matrix].keep_OI for matrix in linear.matrices if matrix in edits]
        keeps = [keep_OI for keep_OI in found if keep_OI is not None]
        if keeps and len(keeps) == len(found):
            assert len(keeps) == len(linear.matrices), f"{name}: some of its experts got a mask and some did not"
            keep = torch.stack(keeps) if len(linear.shape) == 3 else keeps[0]
            exempt = [index for index, matrix in enumerate(linear.matrices) if matrix in spared]
            promise = next(edits[matrix].promise for matrix in linear.matrices if matrix not in spared)
            masks[name] = Mask.of(keep, *(promise or (pattern, allocation[name])), exempt)
    return masks


def _edited(linears: dict[str, Linear], edits: Mapping[str, Edit]) -> set[str]:
    """The parameters that the edits are of: single experts are edited, whole stacks are stored."""
    stacks = {matrix: name for name, linear in linears.items() for matrix in linear.matrices}
    return {stacks.get(name, name) for name, edit in edits.items() if edit.weight_OI is not None}


def _extras(view: BlockView, edits: Mapping[str, Edit]) -> Extras:
    """What the edits leave beside parameters and modules, that of the experts of one parameter stacked."""
    extras: Extras = {}
    for name, linear in view.linears.items():
        given = [edits[matrix].extras for matrix in linear.matrices if matrix in edits]
        for key in given[0] if given else ():
            values = [extra[key].cpu() for extra in given]
            extras.setdefault(name, {})[key] = torch.stack(values) if len(linear.shape) == 3 else values[0]
    known = {name for names in (view.module.named_modules(), view.module.named_parameters()) for name, _ in names}
    for name, edit in edits.items():
        if edit.extras and name not in view.matrices:
            if name.removeprefix(view.prefix) not in known:
                raise ValueError(f"extras of {name}, which block {view.index} does not have")
            extras[name] = {key: value.cpu() for key, value in edit.extras.items()}
    return extras


def _assign(parameters: dict[str, torch.Tensor], matrices: dict[str, torch.Tensor], edits: Mapping[str, Edit]) -> None:
    for name, edit in edits.items():
        if edit.weight_OI is not None:
            target = matrices[name] if name in matrices else parameters[name]
            target.copy_(edit.weight_OI)
