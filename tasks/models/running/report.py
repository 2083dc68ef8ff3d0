"""What the times of matrices say: the sparsity from which a form is faster, what the model's own zeros buy, and tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tasks.models.running.bench import OWN, Measured

NEVER = 1.0  # the break-even of a form that was not faster at any sparsity


def break_even(speedups: Mapping[float, float]) -> float:
    """The sparsity from which on a form is faster than the dense matrix: between the sparsities measured, on a line of the
    logarithm of the speed-up. The first measured where it is faster already; 1 where it is not even at the last."""
    points = sorted(speedups.items())
    slower = [index for index, (_, gain) in enumerate(points) if gain < 1]
    if not slower:
        return points[0][0]
    if slower[-1] == len(points) - 1:
        return NEVER
    (low, before), (high, after) = points[slower[-1]], points[slower[-1] + 1]
    return low + (high - low) * -math.log(before) / (math.log(after) - math.log(before))


def gains(rows: Iterable[Measured]) -> dict[tuple[str, str, int], dict[float, float]]:
    """Of each (matrix, form, columns) with random zeros: the speed-up by sparsity."""
    found: dict[tuple[str, str, int], dict[float, float]] = {}
    for row in rows:
        if row.zeros != OWN and row.form != "masked" and not row.why:
            found.setdefault((row.matrix, row.form, row.columns), {})[row.sparsity] = row.speedup
    return found


def own_speedups(rows: Sequence[Measured], shares: Mapping[str, int]) -> dict[int, float]:
    """By columns: the time of all pruned matrices dense over that in the forms which their patterns allow; dense with its
    zeros where torch has no kernel for a form."""
    found = {}
    for columns in dict.fromkeys(row.columns for row in rows):
        dense = sparse = 0.0
        for matrix, count in shares.items():
            own = [row for row in rows if (row.matrix, row.columns, row.zeros) == (matrix, columns, OWN) and not row.why]
            for row in sorted(own, key=lambda row: row.form == "masked")[:1]:
                dense, sparse = dense + count * row.dense_seconds, sparse + count * row.seconds
        if sparse:
            found[columns] = dense / sparse
    return found


def numbers(rows: Sequence[Measured], shares: Mapping[str, int]) -> dict[str, float]:
    """By metric name; a form breaks even where it does on every matrix it was measured on."""
    worst: dict[str, float] = {}
    for (_, form, columns), speedups in gains(rows).items():
        name = f"break_even_sparsity.{form}_n{columns}"
        worst[name] = max(worst.get(name, 0.0), break_even(speedups))
    own = {f"own_speedup.n{columns}": gain for columns, gain in own_speedups(rows, shares).items()}
    return worst | own | {"kernel_error": max((row.error for row in rows), default=0.0)}


def told(rows: Sequence[Measured], shares: Mapping[str, int]) -> str:
    """The report, for people."""
    parts = [_own(rows, shares), _even(rows), _all(rows)]
    return "\n".join(part for part in parts if part)


def _own(rows: Sequence[Measured], shares: Mapping[str, int]) -> str:
    speedups = own_speedups(rows, shares)
    if not speedups:
        return ""
    lines = [
        f"- {columns} columns: {gain:.2f} x the speed of the dense matrices" + ("" if gain > 1 else ": no gain")
        for columns, gain in speedups.items()
    ]
    if max(speedups.values()) <= 1:
        lines.append("\nThe zeros of this model buy no speed here: no form of its matrices is faster than the dense ones.")
    return "\n".join(["# The model's own zeros", "", *lines, ""])


def _even(rows: Sequence[Measured]) -> str:
    table = [(matrix, str(columns), form, _when(speedups)) for (matrix, form, columns), speedups in sorted(gains(rows).items())]
    missing = {(row.matrix, str(row.columns), row.form, f"not measured: {row.why}"): None for row in rows if row.why}
    heads = ("matrix", "columns", "form", "faster than dense from")
    return "# From which sparsity a form is faster\n\n" + _table(heads, [*table, *missing])


def _when(speedups: Mapping[float, float]) -> str:
    last = max(speedups)
    if (found := break_even(speedups)) == NEVER:
        return f"never: {speedups[last]:.2f} x at {last:.0%}"
    return f"{found:.0%} (or less)" if found == min(speedups) else f"{found:.0%}"


def _all(rows: Sequence[Measured]) -> str:
    heads = ("matrix", "columns", "zeros", "sparsity", "form", "ms", "median", "dense ms", "x", "bytes", "of dense", "kernel")
    table = [
        (
            row.matrix,
            str(row.columns),
            row.zeros,
            f"{row.sparsity:.1%}",
            row.form,
            f"{1e3 * row.seconds:.4f}",
            f"{1e3 * row.median:.4f}",
            f"{1e3 * row.dense_seconds:.4f}",
            f"{row.speedup:.2f}",
            str(row.bytes),
            f"{row.bytes / row.dense_bytes:.2f}",
            row.kernel or "",
        )
        for row in rows
        if not row.why
    ]
    return "# Every measurement\n\n" + _table(heads, table)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"
