"""The table of a plan: what is there, what will run and why, and what it will cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from cluster.store.local import Store
from flows.display import cell
from flows.plan import Plan, doubts

PLANNED = (  # the last two where the profile names a card
    ("tokens", "tokens", "count"),
    ("flops", "FLOPs", "{:.2e}"),
    ("memory_bytes", "memory", "bytes"),
    ("disk_bytes", "disk", "bytes"),
    ("tokens_per_second", "tok/s", "{:,.0f}"),
    ("hours", "hours", "{:,.2f}"),
)


def notes(plan: Plan, store: Store) -> list[str]:
    """What is to be said beside the table: doubts, and that a run would find no store to write to."""
    told = doubts(plan)
    if plan.due:
        try:
            store.writable()
        except ValueError as error:
            told.append(f"{error}; to run this, name another, or mend it")
    return told


def plan_table(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What is cached, what will run and why; costs where the model is known. Of evaluations only those are listed that a
    model lacks which is there."""
    table = Table()
    table.add_column("stage", overflow="fold")
    table.add_column("state", overflow="fold")
    planned = [each for each in PLANNED if each in PLANNED[:4] or any(each[0] in row for row in rows)]
    for _, title, _ in planned:
        table.add_column(title, justify="right", no_wrap=True)
    for step, row in zip(plan.steps, rows, strict=True):
        if step.node.measures and (step.cached or not plan.by_id[step.node.measures].cached):
            continue
        costs = (cell(row.get(name), form) for name, _, form in planned)
        state = "cached" if row["cached"] else f"[bold]will run[/bold], {row['reason']}"
        if "iso_sparsity" in row:
            state += f"; costs what the dense model costs at sparsity {row['iso_sparsity']:.6g}"
        table.add_row(f"{row['id']}\n[dim]{row['address'].partition('/')[2]}[/dim]", state, *costs)
    return table
