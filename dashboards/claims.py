"""A page of claims: what recipes said their models would show, the numbers, and the verdict, read from MLflow."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.tracking import EXPERIMENT, Tracking
from dashboards.figures import groups_figure
from dashboards.numbers import deviation

CLAIMS, CLAIMS_TAG = "claims.json", "winnow.claims"  # in the run of a recipe: the verdicts; how many hold
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
section { border-top: 1px solid #ddd; padding: 1rem 0; display: grid; grid-template-columns: 1fr 24rem; gap: 1rem }
h2 { grid-column: 1 / -1; margin: 0; font-size: 1.1rem } table { border-collapse: collapse } img { max-width: 100% }
td { padding: .1rem .8rem .1rem 0; font-variant-numeric: tabular-nums } p { margin: .3rem 0 }
.holds { color: #1a7f37 } .noise { color: #9a6700 } .fails { color: #b42318 } small { color: #666 }
@media (max-width: 50rem) { section { grid-template-columns: 1fr } }
"""


def write(tracking: Tracking, judged: list[dict[str, Any]]) -> None:
    """The verdicts of a recipe's claims, on the parent run."""
    tracking.text(None, json.dumps(judged), CLAIMS)
    held = sum(claim["holds"] for claim in judged)
    tracking.tag(None, CLAIMS_TAG, f"{held} of {len(judged)} hold")


def read(uri: str) -> list[dict[str, Any]]:
    """Claims of the newest run of each recipe: [{recipe, run, commit, claims}]."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient
    from mlflow.artifacts import load_text

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: dict[str, dict[str, Any]] = {}
    wanted = f"tags.`{CLAIMS_TAG}` != ''"
    runs = client.search_runs([experiment.experiment_id], wanted, order_by=["start_time DESC"]) if experiment else []
    for run in runs:
        recipe = run.data.tags["winnow.recipe"]
        if recipe not in found:
            claims = json.loads(load_text(f"{run.info.artifact_uri}/{CLAIMS}"))
            found[recipe] = {
                "recipe": recipe,
                "run": run.info.run_id,
                "commit": run.data.tags.get("winnow.git_commit", ""),
                "claims": claims,
            }
    return sorted(found.values(), key=lambda result: result["recipe"])


def page(results: Iterable[Mapping[str, Any]]) -> str:
    """One self-contained HTML page."""
    body = "".join(_recipe(result) for result in results) or "<p>No run in MLflow has claimed anything yet.</p>"
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Winnow: claims</title><style>{STYLE}</style>"
        f"<h1>Claims</h1><p>Mean and standard deviation over seeds; a verdict is clear where the mean difference of equal "
        f"seeds is more than two standard errors from zero.</p>{body}</html>"
    )


def _recipe(result: Mapping[str, Any]) -> str:
    sections = "".join(_claim(claim) for claim in result["claims"])
    source = html.escape(f"run {result['run'][:12]}, commit {result['commit'][:12]}")
    return f"<h1>{html.escape(result['recipe'])} <small>{source}</small></h1>{sections}"


def _claim(claim: Mapping[str, Any]) -> str:
    kind = "holds" if claim["holds"] else "fails" if claim["clear"] else "noise"
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{group['mean']:.4g}{deviation(group)}<td><small>{_seeds(group)}</small>"
        for name, group in claim["groups"].items()
    )
    paper = f"; the paper: {claim['paper']}" if claim.get("paper") else ""
    return (
        f"<section><h2>{html.escape(claim['says'])}: <span class='{kind}'>{html.escape(claim['verdict'])}</span></h2>"
        f"<div><table>{rows}</table><p><small>{html.escape(claim['metric'] + paper)}</small></p></div>"
        f"<img alt='{html.escape(claim['says'])}' src='data:image/png;base64,{_png(claim)}'></section>"
    )


def _png(claim: Mapping[str, Any]) -> str:
    buffer = io.BytesIO()
    groups = {name: list(group["values"].values()) for name, group in claim["groups"].items()}
    groups_figure(groups, claim["metric"]).savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def _seeds(group: Mapping[str, Any]) -> str:
    return f"{len(group['values'])} seed{'s' * (len(group['values']) != 1)}"
