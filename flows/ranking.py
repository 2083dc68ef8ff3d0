"""The branches of a sweep or a search, best first, by one metric of the last model of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from flows.nodes import Node, Recipe
from flows.trials import TRIAL, Values
from tasks.metrics import METRICS
from tasks.stage import members

OBJECTIVE = "perplexity"  # where the recipe names none


def ranking(recipe: Recipe, models: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Objective and rows, as the summary has them; None where there are no branches to rank. They are ranked by the objective,
    wherever in the recipe they end. A branch that was stopped comes after those that were not, and the further it came the
    better."""
    objective = recipe.search.objective if recipe.search else OBJECTIVE
    passed = {id for model in models for id in _made_from(recipe.node(model["stage"]))}
    ends = [model for model in models if model["branch"] and model["stage"] not in passed and objective in model]
    if len(ends) < 2:
        return None
    order = list(dict.fromkeys(node.base for node in recipe.models()))
    goes_on = {id for node in recipe.models() for id in _made_from(node)}
    stopped = {model["stage"]: order.index(model["base"]) for model in ends if model["stage"] in goes_on}
    sign = -1.0 if METRICS[objective].better == "higher" else 1.0
    ends.sort(key=lambda model: (-stopped.get(model["stage"], len(order)), sign * model[objective]))
    rows = [
        {
            "rank": rank,
            "stage": model["stage"],
            "address": model["address"],
            "values": _values(recipe, model["branch"]),
            objective: model[objective],
            "ended_after": model["base"] if model["stage"] in stopped else None,
        }
        for rank, model in enumerate(ends, start=1)
    ]
    return {"objective": objective, "better": METRICS[objective].better, "rows": rows}


def _made_from(node: Node) -> set[str | None]:
    return {node.came_from, *members(node.parents, node.stage.plural)}


def _values(recipe: Recipe, branch: Mapping[str, str]) -> Values:
    """What was chosen on a branch: labels of grids by axis, and the values of its trial by field."""
    found: Values = {axis: label for axis, label in branch.items() if axis != TRIAL}
    for trial in recipe.trials:
        if branch.get(TRIAL) == f"{TRIAL}{trial.number}":
            found |= trial.values
    return found


def ranking_table(found: Mapping[str, Any], most: int = 20) -> Table:
    """The best ``most`` of them."""
    table = Table(caption_justify="left")
    table.add_column("", justify="right")
    table.add_column("branch", overflow="fold")
    table.add_column(found["objective"], justify="right")
    table.add_column("with", overflow="fold")
    for row in found["rows"][:most]:
        ended = f"\n[dim]stopped after {row['ended_after']}[/dim]" if row["ended_after"] else ""
        values = ", ".join(_chosen(field, value) for field, value in row["values"].items())
        table.add_row(str(row["rank"]), row["stage"] + ended, f"{row[found['objective']]:.4g}", values)
    if len(found["rows"]) > most:
        table.caption = f"and {len(found['rows']) - most} more, in --json"
    return table


def _chosen(field: str, value: Any) -> str:
    """A label of a grid that has the field's name in it needs it no second time."""
    return str(value) if str(value).startswith(field.rpartition(".")[2]) else f"{field}={_short(value)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
