"""The inner loops of a column sweep as one GPU kernel: :mod:`tasks.calibrate.solvers.settling` says what they do.

A program takes a few rows through all columns of a block, which stay in registers until the last is done.

Shapes: O = output rows, I = input columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from tasks.calibrate.solvers.rounding import Rounding

ROWS = 16  # of one program
NORMAL = 126  # float32 goes down to 2^-126 before it loses bits


def settle(
    work_OI: torch.Tensor,
    errors_OI: torch.Tensor,
    keep_OI: torch.Tensor,
    upper_II: torch.Tensor,
    saliency_I: torch.Tensor,
    first: int,
    last: int,
    end: int,
    width: int,
    pruned: int,
    rounding: Rounding | None,
) -> None:
    """Columns of a known mask; with ``width``, groups that choose theirs."""
    rows, columns = work_OI.shape
    assert rounding is None or work_OI.dtype == torch.float32, work_OI.dtype
    scale, zero, group = (rounding.scale_OG, rounding.zero_OG, rounding.group_I) if rounding else (upper_II, upper_II, upper_II)
    (code_bits, code_least), (bits, least) = (rounding.coded, rounding.kept) if rounding else ((0, 0), (0, 0))
    with torch.cuda.device(work_OI.device):
        _settle[(triton.cdiv(rows, ROWS),)](
            work_OI,
            errors_OI,
            keep_OI,
            upper_II,
            saliency_I,
            scale,
            zero,
            group,
            rows,
            columns,
            scale.shape[1],
            rounding.lowest if rounding else 0.0,
            rounding.highest if rounding else 0.0,
            pruned,
            first,
            last,
            end,
            WIDTH=width,
            GRID=rounding is not None,
            CODE_BITS=code_bits,
            CODE_LEAST=max(code_least, code_bits - NORMAL),
            BITS=bits,
            LEAST=max(least, bits - NORMAL),
            ROWS=ROWS,
            SPAN=triton.next_power_of_2(end - first),
        )


@triton.jit
def _settle(
    work,
    errors,
    keep,
    upper,
    saliency,
    scale,
    zero,
    group_of,
    rows,
    columns,
    groups,
    lowest,
    highest,
    pruned,
    first,
    last,
    end,
    WIDTH: tl.constexpr,
    GRID: tl.constexpr,
    CODE_BITS: tl.constexpr,
    CODE_LEAST: tl.constexpr,
    BITS: tl.constexpr,
    LEAST: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = first + tl.arange(0, SPAN)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    exists = (row < rows)[:, None] & (column < end)[None, :]
    weight = tl.load(work + place, mask=exists, other=0.0)
    live = tl.load(keep + place, mask=exists, other=1) != 0
    error = tl.zeros_like(weight)
    if WIDTH:
        saliency_ahead = tl.load(saliency + column, mask=column < end, other=0.0)[None, :]
    for settled in range(first, last):
        if WIDTH:  # noqa: SIM102  known when this is compiled
            if (settled - first) % WIDTH == 0:
                score = tl.where(live, weight * weight * saliency_ahead, -1.0)
                below = tl.zeros([ROWS, SPAN], tl.int32)
                for other in range(settled, settled + WIDTH):
                    theirs = tl.sum(tl.where((column == other)[None, :], score, 0.0), 1)[:, None]
                    below += ((theirs < score) | ((theirs == score) & (other < column)[None, :])).to(tl.int32)
                group = ((column >= settled) & (column < settled + WIDTH))[None, :]
                live = live & ((below >= pruned) | (group == 0))
        here = (column == settled)[None, :]
        ahead = tl.load(upper + settled.to(tl.int64) * columns + column, mask=(column >= settled) & (column < end), other=0.0)
        goes = here & (live == 0)
        target = tl.zeros_like(weight)
        if GRID:
            grid = row.to(tl.int64) * groups + tl.load(group_of + settled)
            own = tl.sum(tl.where(here, weight, 0.0), 1)
            step = tl.load(scale + grid, mask=row < rows, other=1.0)
            origin = tl.load(zero + grid, mask=row < rows, other=0.0)
            value = _rounded(own, step, origin, lowest, highest, CODE_BITS, CODE_LEAST, BITS, LEAST)
            target = tl.where(live, value[:, None], 0.0)
            goes = here
        lost = tl.sum(tl.where(goes, weight - target, 0.0), 1) / tl.sum(tl.where(column == settled, ahead, 0.0), 0)
        weight = tl.where(goes, target, weight - lost[:, None] * ahead[None, :])
        error = tl.where(goes, lost[:, None], error)
    settled_here = exists & (column < last)[None, :]
    tl.store(work + place, weight, mask=exists)
    tl.store(errors + place, error, mask=settled_here)
    if WIDTH:
        tl.store(keep + place, live, mask=settled_here)


@triton.jit
def _rounded(
    weight,
    scale,
    zero,
    lowest,
    highest,
    CODE_BITS: tl.constexpr,
    CODE_LEAST: tl.constexpr,
    BITS: tl.constexpr,
    LEAST: tl.constexpr,
):
    """The nearest values on the grid."""
    code = tl.minimum(tl.maximum(tl.div_rn(weight, scale) + zero, lowest), highest)
    code = _nearest(code, CODE_BITS, CODE_LEAST) if CODE_BITS else _whole(code)
    value = (code - zero) * scale
    return _nearest(value, BITS, LEAST) if BITS else value


@triton.jit
def _nearest(value, BITS: tl.constexpr, LEAST: tl.constexpr):
    """The nearest floats with so many bits after the first, half to even. Exponents below ``LEAST`` count as that one."""
    exponent = tl.maximum((value.to(tl.int32, bitcast=True) >> 23 & 255) - 127, LEAST)
    unit = (exponent - BITS + 127 << 23).to(tl.float32, bitcast=True)
    return _whole(value * (BITS - exponent + 127 << 23).to(tl.float32, bitcast=True)) * unit


@triton.jit
def _whole(value):
    """The nearest whole numbers, half to even: a float32 this far out has no fractions."""
    return value + 12582912.0 - 12582912.0
