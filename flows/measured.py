"""What evaluators found beside the table of models: evaluations that are stages of their own, and numbers without a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.display import ROWS, cell

FORMS = {name: (title, form) for name, title, form in ROWS}


def evaluations_table(evaluations: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each: what was measured, against what, and every number."""
    table = Table()
    for title in ("evaluation", "of", "against"):
        table.add_column(title, overflow="fold")
    table.add_column("", justify="right")
    for found in evaluations:
        told = (FORMS.get(name, (name, "{:.4g}")) + (value,) for name, value in found["metrics"].items())
        numbers = "\n".join(f"{title} {cell(value, form)}" for title, form, value in told)
        table.add_row(f"{found['stage']}\n[dim]{found['method']}[/dim]", found["model"], found["reference"] or "", numbers)
    return table


def without_row(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The numbers of evaluators that the table of models has no row for."""
    found = (name for stage in stages if stage["name"] == "evaluate" for name in stage["metrics"])
    return [name for name in dict.fromkeys(found) if name not in FORMS]
