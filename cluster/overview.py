"""What MLflow's own UI shows of our experiment first: the kind, a view of its run table with the columns that matter and a few
charts, and a description that links to it.

The UI keeps a view as JSON in a tag of the experiment, and opens it where the address names it. By its bare
address it goes by a switch that every browser remembers for itself (GenAI or Model training), and asks no tag; links name both.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

VIEW = "winnow"
TAG = f"mlflow.sharedViewState.{VIEW}"
NOTE = "mlflow.note.content"
COLUMNS = (
    "metrics.`perplexity`",
    "metrics.`sparsity`",
    "metrics.`bytes`",
    "metrics.`decode_tokens_per_second`",
    "tags.`winnow.gates`",
    "metrics.`seconds`",
)
MODELS, OTHERS = "models", "others"  # sections of charts; what the UI adds by itself goes into the other one, which is closed
CHARTS: tuple[dict[str, Any], ...] = (
    {
        "type": "SCATTER",
        "chartName": "quality against size",
        "displayName": "quality against size",
        "xaxis": {"key": "bytes", "type": "METRIC"},
        "yaxis": {"key": "perplexity", "type": "METRIC"},
        "runsCountToCompare": 100,
    },
    {"type": "BAR", "metricKey": "perplexity", "displayName": "perplexity", "runsCountToCompare": 20},
    {"type": "BAR", "metricKey": "bytes", "displayName": "bytes", "runsCountToCompare": 20},
    {"type": "BAR", "metricKey": "sparsity", "displayName": "sparsity", "runsCountToCompare": 20},
)


def place(experiment: str) -> str:
    """Where the view is, from the UI's root."""
    return f"#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def page(server: str, name: str) -> str:
    """The view's address on a server of this machine; empty where it does not know the experiment ``name`` yet."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}"
    with suppress(OSError), direct.open(asked, timeout=5) as answer:
        return f"{server}/{place(json.load(answer)['experiment']['experiment_id'])}"
    return ""


def to_tell(known: Mapping[str, str], experiment: str) -> dict[str, str]:
    """The tags that an experiment with these ones lacks. A description that somebody wrote stays."""
    about = f"Runs of Winnow: [the models and their numbers]({place(experiment)})."
    tags = {"mlflow.experimentKind": "custom_model_development", TAG: view()}
    tags |= {} if known.get(NOTE) else {NOTE: about}
    return {tag: value for tag, value in tags.items() if known.get(tag) != value}


def view() -> str:
    """The saved view, as the UI writes one."""
    sections = [
        {"uuid": MODELS, "name": "Models", "display": True, "isReordered": True, "deleted": False, "isGenerated": False},
        {
            "uuid": OTHERS,
            "name": "Model metrics",
            "display": False,
            "isReordered": False,
            "deleted": False,
            "isGenerated": True,
        },
    ]
    charts = [
        {"uuid": f"{MODELS}-{number}", "metricSectionId": MODELS, "isGenerated": False, "deleted": False, **chart}
        for number, chart in enumerate(CHARTS)
    ]
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
    }
    return json.dumps({"name": "Winnow: models", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})
