"""``winnow claims``: run the recipes that claim something, and print what holds and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.options import JsonOption, ProfileOption, console, errors, file_to_write


def claims(
    recipes: Annotated[list[str], typer.Argument(help="recipes with claims: paths, or names of shipped ones")],
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
    here: Annotated[bool, typer.Option("--here", help="in this process, without Ray and Prefect")] = False,
    page: Annotated[
        Path | None, typer.Option("--page", callback=file_to_write, help="also write the results in MLflow as this HTML page")
    ] = None,
) -> None:
    """Run recipes one after the other, judge their claims, and print one table. What is done already is not run again."""
    from flows.display import claims_table
    from flows.launch import launch
    from flows.recipe import load_recipe

    for recipe in recipes:
        if not load_recipe(recipe).claims:
            raise ValueError(f"recipe {recipe}: it claims nothing; add claims: [{{says: ..., stage: ..., order: [...]}}]")
    judged: list[dict[str, Any]] = []
    for recipe in recipes:
        _, summary = launch(recipe, profile, errors, quiet=as_json, here=here)
        judged += [{"recipe": summary["recipe"], **claim} for claim in summary["claims"]]
        if not as_json:
            console.print(claims_table(judged[-len(summary["claims"]) :]))
    if page:
        _write_page(page)
    if as_json:
        print(json.dumps({"claims": judged}))
        return
    if len(recipes) > 1:
        console.print(claims_table(judged))
    console.print(f"{sum(claim['holds'] for claim in judged)} of {len(judged)} claims hold", highlight=False)


def _write_page(path: Path) -> None:
    from cluster.tracking import tracking_uri
    from dashboards.claims import page, read

    path.write_text(page(read(tracking_uri())))
    errors.print(f"page: {path}", highlight=False)
