"""The zoo as a table: one row a member, one cell a stage or check; in a terminal, or as a page of docs."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from tests.zoo.keeper import COLUMNS, Cell, Row

STYLES = {"ok": "green", "refused": "yellow", "FAILED": "red", "-": "dim"}
MEANINGS = {
    "half": "pruned to 50 % by Wanda",
    "pruned": "pruned to 2:4 by Wanda",
    "recovered": "the 2:4 model trained on under its mask, its dense self as the teacher",
    "quantized": "the recovered model in 4 bits by GPTQ; *refused* is said in one line before anything runs",
    "load": "plain transformers finds nothing missing, unexpected or of another shape, and bfloat16",
    "names": "read by glob, the export holds the source's names, each once, and nothing else, in no more files",
    "bytes": "what a stage does not mean to change leaves as the bytes it came as, dtype included",
    "companions": "generation config with both stop tokens, chat template, tokenizer, processor files, config",
    "ties": "head and embedding are one tensor where they were",
    "groups": "every row keeps its half, every group of four its two, on the packed integers as well",
    "logits": "the export says what the artifact says",
    "perplexity": "the one recorded equals one computed from scratch",
    "masks": "Wanda's masks, computed again from scratch, are the same to the last bit",
}
HEAD = """# The zoo

Every architecture below is built tiny by plain transformers in the hub's layout (bfloat16 with some float32, in shards, with a
tensor that the architecture does not name), goes through Winnow's stages, and its exports are compared with the source in a
process that knows nothing of Winnow. `make zoo` does it again and writes this page.
"""


def show(rows: Iterable[Row]) -> Table:
    table = Table()
    for title in ("model", *COLUMNS):
        table.add_column(title, overflow="fold")
    for row in rows:
        states = [_cell(row, name).state for name in COLUMNS]
        table.add_row(row.name, *(f"[{STYLES[state]}]{state}[/]" for state in states))
    return table


def failures(rows: Iterable[Row]) -> list[str]:
    """A line for every cell that failed."""
    return [f"{row.name}, {name}: {cell.reason}" for row in rows for name, cell in row.cells.items() if cell.state == "FAILED"]


def page(rows: list[Row]) -> str:
    lines = [f"| model | {' | '.join(COLUMNS)} |", f"|{'---|' * (1 + len(COLUMNS))}"]
    lines += [f"| {row.name} | {' | '.join(_cell(row, name).state for name in COLUMNS)} |" for row in rows]
    meanings = [f"- **{name}**: {meaning}" for name, meaning in MEANINGS.items()]
    told = [(row.name, name, cell) for row in rows for name, cell in row.cells.items() if cell.reason]
    reasons = [f"- {row}, {name}, {cell.state}: {cell.reason}" for row, name, cell in told]
    parts = [HEAD, *lines, "", *meanings, ""]
    return "\n".join(parts + (["What is refused or failed, and why:", "", *reasons, ""] if reasons else []))


def _cell(row: Row, name: str) -> Cell:
    return row.cells.get(name, Cell("-"))
