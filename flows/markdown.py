"""What a run's page in Prefect shows, as Markdown: a stage beside what it came from, and all models of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flows.display import ROWS, cell
from flows.gates import told as told_of

Numbers = Mapping[str, Any]
Links = Mapping[str, str]


def grid(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """A table; ``align`` has l or r for each column. Without it the first column is text and the others are numbers."""
    rules = [{"l": "---", "r": "---:"}[side] for side in align or "l" + "r" * (len(header) - 1)]
    lines = [header, rules, *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def links(named: Links) -> str:
    return " · ".join(f"[{name}]({place})" for name, place in named.items() if place)


def stage_page(name: str, numbers: Numbers, before: str, earlier: Numbers, address: str, places: Links) -> str:
    """One stage's numbers, beside those of the model it began with where there is one."""
    known = {row for row, _, _ in ROWS}
    forms = [*ROWS, *((row, row.replace("_", " "), _form(row)) for row in sorted(numbers.keys() - known))]
    columns = [earlier, numbers] if before else [numbers]
    shown = [[title, *(cell(column.get(row), form) for column in columns)] for row, title, form in forms if row in numbers]
    header = ["", before, f"**{name}**"] if before else ["", f"**{name}**"]
    return "\n\n".join(filter(None, [grid(header, shown), links(places), f"`{address}`"]))


def _form(metric: str) -> str:
    return "bytes" if metric.endswith("bytes") else "{:,.6g}"


def run_page(summary: Mapping[str, Any], places: Mapping[str, Links], of_run: Links, failure: str = "") -> str:
    """The whole run: a row a model with the columns that tell models apart, what each stage cost, what claims came to."""
    parts = [
        f"**{failure}**" if failure else "",
        _models(summary["models"]),
        _stages(summary, places),
        _claims(summary["claims"]),
    ]
    total = f"{summary['seconds']:.0f} s, of which {summary['overhead_seconds']:.0f} s outside the stages"
    return "\n\n".join(filter(None, [*parts, " · ".join(filter(None, [total, links(of_run)]))]))


def _models(models: Sequence[Numbers]) -> str:
    columns = [(title, [_unbroken(cell(model.get(row), form)) for model in models]) for row, title, form in ROWS]
    columns.append(("require", [told_of(model.get("gates", ())) for model in models]))
    told = [(title, cells) for title, cells in columns if any(cells)]
    names = [f"**{model['stage']}**" for model in models]
    return (
        grid(["model", *(title for title, _ in told)], zip(names, *(cells for _, cells in told), strict=True)) if told else ""
    )


def _unbroken(text: str) -> str:
    """A number stays on one line with its unit."""
    return text.replace(" ", "\u00a0")


def _stages(summary: Mapping[str, Any], places: Mapping[str, Links]) -> str:
    rows = []
    for stage in summary["stages"]:
        if stage["id"] in places:  # evaluations stand with their model
            state = "cached" if stage["cached"] else "made" if stage["done"] else "not made"
            seconds = "" if stage["cached"] else cell(stage["seconds"], "{:.1f}")
            rows.append([stage["id"], state, seconds, f"`{stage['address']}`", links(places[stage["id"]])])
    return grid(["stage", "", "seconds", "artifact", ""], rows, "llrll")


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    return grid(["claim", "verdict"], [[claim["says"], claim["verdict"]] for claim in claims], "ll") if claims else ""
