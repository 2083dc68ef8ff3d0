"""Descriptions in MLflow: of a run what the models came to, what each stage cost, and the run that tells of it; of a stage or a
model its numbers beside those of the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flows.display import cell, size
from flows.gates import told
from flows.markdown import Links, Numbers, grid, stage_page

ROOM = 7500  # MLflow keeps 8000 characters
SHOWN = (("perplexity", "{:.2f}"), ("sparsity", "{:.1%}"), ("bytes", "bytes"), ("decode_tokens_per_second", "{:,.0f}"))


def note(summary: Mapping[str, Any], page: Callable[[str], str]) -> str:
    """``page`` says where the run of a stage is, empty where none tells of it. Of a long table the rows that fit."""
    models = {model["stage"]: model for model in summary["models"]}
    rows = []
    for stage in summary["stages"]:
        if place := page(stage["id"]):
            state = "cached" if stage["cached"] else f"{stage['seconds']:.1f} s" if stage["done"] else "not made"
            model = models.get(stage["id"], {})
            numbers = [cell(model.get(name), form) for name, form in SHOWN]
            verdict = told(model.get("gates", ()))
            rows.append([stage["id"], *numbers, verdict, state, f"`{stage['address']}`", f"[the run that made it]({place})"])
    header = ["stage", "perplexity", "sparsity", "size", "decode tok/s", "require", "", "artifact", "run"]
    return bounded(header, rows)


def bounded(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table, with a line for the rows that are too many."""
    align = "lrrrrllll"
    kept = len(rows)
    while len(text := grid(header, rows[:kept], align)) > ROOM:
        kept -= 1
    return text if kept == len(rows) else f"{text}\n\nand {len(rows) - kept} more"


def of_stage(id: str, numbers: Numbers, before: str, earlier: Numbers, address: str, places: Links) -> str:
    """A table that fits: of many numbers those that were measured apart, of a task or a setting, are left out from the end."""
    names = sorted(numbers, key=lambda name: "." in name)  # what belongs together stays so
    title = f"{before} (before)" if before else ""
    while True:
        text = stage_page(id, {name: numbers[name] for name in names}, title, earlier, address, places)
        if len(text) <= ROOM:
            return text
        names = names[: min(len(names) - 1, len(names) * ROOM // len(text))]


def of_model(model: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a model, for the pages where MLflow lists models."""
    return {"winnow.size": size(model["bytes"])} if "bytes" in model else {}
