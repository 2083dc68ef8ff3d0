"""Claims: what recipes said their models would show, the numbers that came out, and whether it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import html

from dashboards.book import Pipeline
from dashboards.claims import CLAIMS_TAG
from dashboards.numbers import deviation, shown, title
from dashboards.sight import Sight, empty, links, sheet

SIGNS = {"holds": ("✓", "good"), "noise": ("~", ""), "fails": ("✕", "bad")}


def page(sight: Sight) -> list[Any]:
    """Of each recipe the newest run that came to a verdict."""
    newest: dict[str, Pipeline] = {}
    for one in sight.pipelines:
        if one.tags.get(CLAIMS_TAG):
            newest.setdefault(one.recipe, one)
    if not newest:
        text = "No chosen run has claimed anything."
        return [
            empty(
                text, ["A recipe says ", html.Code("claims:"), "; ", html.Code("winnow claims RECIPE"), " runs it and judges."]
            )
        ]
    return [part for one in newest.values() for part in _recipe(sight, one)]


def _recipe(sight: Sight, pipeline: Pipeline) -> list[Any]:
    commit = pipeline.tags.get("winnow.git_commit", "")[:12]
    head = [html.H2(pipeline.recipe), html.Span(pipeline.tags[CLAIMS_TAG]), html.Small(f"commit {commit}" if commit else "")]
    rows = [_claim(one) for one in sight.reading.claims(pipeline)]
    told = sheet(["claim", "paper", "ours: mean ± deviation over seeds", "verdict"], rows)
    return [html.Div([*head, *links(("MLflow", sight.mlflow(pipeline.run)))], className="head"), told]


def _claim(claim: Mapping[str, Any]) -> list[Any]:
    sign, colour = SIGNS["noise" if not claim["clear"] else "holds" if claim["holds"] else "fails"]
    metric = claim["metric"]
    groups = [
        html.Div(f"{name}: {shown(metric, group['mean'])}{deviation(group, metric)} ({len(group['values'])})")
        for name, group in claim["groups"].items()
    ]
    says = html.Span([claim["says"], html.Small(f" {title(metric)}")])
    return [
        says,
        claim.get("paper", "") or "—",
        html.Div(groups),
        html.Span(f"{sign} {claim['verdict']}", className=f"gate {colour}"),
    ]
