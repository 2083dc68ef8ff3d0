"""The one calibration walker: block by block, observe, solve, check, assign, and run again to feed the next block.

Statistics come from the still-dense block fed by the already compressed prefix. Only this file assigns weights; what
a method returns is checked against its promise first. The masks a model comes with are handed to the method and kept.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from tasks.calibrate.method import BlockMethod, BlockView, Edit
from tasks.calibrate.watch import Watch
from tasks.formats.mask import Mask
from tasks.formats.pattern import Pattern, parse_pattern
from tasks.models.blocks import Extras, ResidentBlocks
from tasks.models.capture import Activations
from tasks.models.linears import Linear


@dataclass(frozen=True)
class BlockReport:
    """``error``: squared change of the block's output over the output's squares; None without data.

    ``unseen``: matrices that no token reached, solved as if all inputs were alike. ``notes``: what a method had to
    say of a matrix, such as the damping it needed.
    """

    index: int
    depth: int
    sparsity: dict[str, float]
    error: float | None
    seconds: float
    peak_bytes: int
    unseen: list[str] = field(default_factory=list)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class WalkReport:
    blocks: list[BlockReport] = field(default_factory=list)

    @property
    def sparsity(self) -> dict[str, float]:
        return {name: value for block in self.blocks for name, value in block.sparsity.items()}

    @property
    def unseen(self) -> list[str]:
        return [name for block in self.blocks for name in block.unseen]

    @property
    def metrics(self) -> dict[str, float]:
        """The walk in scalars."""
        errors = [block.error for block in self.blocks if block.error is not None]
        return {
            "walk/seconds": sum(block.seconds for block in self.blocks),
            "walk/peak_bytes": float(max((block.peak_bytes for block in self.blocks), default=0)),
            "walk/unseen": float(len(self.unseen)),
            **({"walk/mean_error": sum(errors) / len(errors)} if errors else {}),
        }


def walk(
    stream: ResidentBlocks,
    batches: Iterable[torch.Tensor],
    method: BlockMethod,
    *,
    sparsity: float | Mapping[str, float] = 0.0,
    pattern: Pattern | str = "unstructured",
    on_block: Callable[[BlockReport], None] = lambda report: None,
) -> WalkReport:
    """Run ``method`` over every block of ``stream``; ``batches`` are tokens int64 [B, T].

    ``sparsity`` is one number or one per parameter name. Without batches only methods that need no data can run, and
    no error is measured.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern, getattr(method, "scope", "layer"))
    levels = _levels(stream.linears, sparsity)
    method.admit(stream.linears, levels, pattern)
    batches = list(batches)
    if not batches and any(method.observer(linear) is not None for linear in stream.linears.values()):
        raise ValueError(f"{method.name} needs calibration data, and there is none")
    report = WalkReport()
    with torch.no_grad():
        flow = stream.capture(batches)
        for index in range(stream.depth):
            report.blocks.append(_treat(stream, index, flow, method, levels, pattern))
            on_block(report.blocks[-1])
        stream.finish()
    return report


def _levels(linears: Mapping[str, Linear], sparsity: float | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(linears, float(sparsity))
    if odd := sorted(linears.keys() ^ sparsity.keys()):
        raise ValueError(f"an allocation gives a sparsity to every linear and only those; {odd[0]} differs "
                         f"({len(odd)} names in all)")  # fmt: skip
    return dict(sparsity)


def _treat(
    stream: ResidentBlocks,
    index: int,
    flow: Activations,
    method: BlockMethod,
    levels: Mapping[str, float],
    pattern: Pattern,
) -> BlockReport:
    started = time.perf_counter()
    block, linears, masks = stream.read(index), stream.linears_of(index), stream.masks_of(index)
    prefix = f"{stream.prefix}.{index}."
    parameters = {prefix + name: parameter.data for name, parameter in block.named_parameters()}
    statistics, unseen, dense = _observe(block, index, flow, linears, parameters, method)
    matrices, keep = _matrices(linears, parameters, masks)
    sparsity = {matrix: levels[name] for name, linear in linears.items() for matrix in linear.matrices}
    run = partial(flow.run, block, index)
    view = BlockView(index, prefix, linears, matrices, keep, statistics, sparsity, pattern, block, flow.hidden, run)
    edits = method.solve(view)
    method.check(view, edits)
    masks |= _new_masks(linears, edits, levels, pattern)
    extras = _extras(linears, edits)
    _assign(parameters, matrices, edits)
    error = _propagate(block, index, flow, dense)
    densities = {name: 1 - masks[name].live / masks[name].numel for name in masks}
    notes = {name: dict(edit.notes) for name, edit in edits.items() if edit.notes}
    stream.write(index, block, masks, extras)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - started
    return BlockReport(index, stream.depth, densities, error, seconds, peak, unseen, notes)


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


def _observe(
    block: torch.nn.Module,
    index: int,
    flow: Activations,
    linears: dict[str, Linear],
    parameters: dict[str, torch.Tensor],
    method: BlockMethod,
) -> tuple[dict, list[str], list[torch.Tensor]]:
    """Run the dense block: the observers' statistics, what no token reached, and the outputs."""
    watched = {name: linear for name, linear in linears.items() if method.observer(linear) is not None}
    if not watched:
        return {}, [], list(flow.run(block, index))
    watch, outputs = Watch(watched, parameters, method.observer), []
    with watch:
        for output_BTD in flow.run(block, index):
            outputs.append(output_BTD)
            watch.next_batch()
    return watch.statistics, watch.unseen(), outputs


def _propagate(block: torch.nn.Module, index: int, flow: Activations, dense: list[torch.Tensor]) -> float | None:
    """Replace the hidden states by the edited block's output; returns its relative squared error."""
    change = total = 0.0
    for batch, output_BTD in enumerate(flow.run(block, index)):
        reference_BTD = dense[batch].double()
        change += float((output_BTD.double() - reference_BTD).square().sum())
        total += float(reference_BTD.square().sum())
        dense[batch] = flow.hidden[batch] = output_BTD
    return change / max(total, 1e-300) if dense else None


def _new_masks(
    linears: dict[str, Linear], edits: Mapping[str, Edit], levels: Mapping[str, float], pattern: Pattern
) -> dict[str, Mask]:
    """The masks that were decided. Edits without one leave the weight's mask, and its promise, as they are."""
    masks = {}
    for name, linear in linears.items():
        keeps = [edits[matrix].keep_OI for matrix in linear.matrices if matrix in edits]
        if keeps and all(keep_OI is not None for keep_OI in keeps):
            assert len(keeps) == len(linear.matrices), f"{name}: some of its experts got a mask and some did not"
            keep = torch.stack(keeps) if len(linear.shape) == 3 else keeps[0]
            promise = next(edits[matrix].promise for matrix in linear.matrices) or (pattern, levels[name])
            masks[name] = Mask.of(keep.cpu(), *promise)
    return masks


def _extras(linears: dict[str, Linear], edits: Mapping[str, Edit]) -> Extras:
    """What the edits leave beside the weights, the experts of one parameter stacked."""
    extras: Extras = {}
    for name, linear in linears.items():
        given = [edits[matrix].extras for matrix in linear.matrices if matrix in edits]
        for key in given[0] if given else ():
            values = [extra[key].cpu() for extra in given]
            extras.setdefault(name, {})[key] = torch.stack(values) if len(linear.shape) == 3 else values[0]
    return extras


def _assign(parameters: dict[str, torch.Tensor], matrices: dict[str, torch.Tensor], edits: Mapping[str, Edit]) -> None:
    for name, edit in edits.items():
        target = matrices[name] if name in matrices else parameters[name]
        target.copy_(edit.weight_OI)
