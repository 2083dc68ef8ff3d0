"""What somebody waits who starts a run from Prefect's page, or a finished one from the command line, with the servers up.

One home, ``winnow up``, a small recipe triggered as the form does: from the click until the first stage runs, what each stage
takes beside its own work, and from the click until a run of which all is cached is done.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from cluster.servers.services import Services
from tests.bench.measured import Measured
from tests.pipeline import LENGTH, Home, pretrain, prune
from tests.pipeline.test_standing import Ui

ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def measure() -> list[Measured]:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory))
        recipe = home.recipe(
            "click", pretrain("dense", 40), prune(), evaluate={"perplexity": {"length": LENGTH, "tokens": 1024}}
        )
        home.directory.mkdir(parents=True)
        listed = {"deployments": [{"recipe": str(recipe), "profile": str(home.profile)}]}
        (home.directory / "deployments.yaml").write_text(yaml.safe_dump(listed))
        home.winnow("up")
        try:
            ui = Ui(Services(home.directory).environment())
            _warm(home)
            first, _ = click(ui)
            _, cached = click(ui)
            begun = time.monotonic()
            again = home.run(recipe)
            wall = time.monotonic() - begun
            overheads = _overheads(home)
        finally:
            Services(home.directory).stop()
    assert all(stage["cached"] for stage in again.summary["stages"])
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    slowest = max(overheads, key=overheads.__getitem__)
    each = ", ".join(f"{id} {seconds:.1f}" for id, seconds in overheads.items())
    return [
        Measured("click.first", first, 10, "from the click until the first stage is a running task", "s"),
        Measured("click.stage", overheads[slowest], 5, f"highest overhead of a stage, servers up: {each}", "s"),
        Measured("click.cached", cached, 10, "from the click until a wholly cached run is done", "s"),
        Measured("click.command", wall, 8, "the same from the command line", "s"),
    ]


def click(ui: Ui) -> tuple[float, float]:
    """Seconds from the click until a stage runs, and until the run is done."""
    deployment = _deployment(ui)
    begun, first = time.monotonic(), 0.0
    run = ui.ask("POST", f"/deployments/{deployment}/create_flow_run", {"parameters": {}})["id"]
    which = {"task_runs": {"flow_run_id": {"any_": [run]}, "state": {"type": {"any_": ["RUNNING", "COMPLETED"]}}}}
    while (state := ui.ask("GET", f"/flow_runs/{run}")["state_type"]) not in ENDS:
        if not first and ui.ask("POST", "/task_runs/filter", which):
            first = time.monotonic() - begun
        time.sleep(0.2)
    if state != "COMPLETED":
        raise RuntimeError(f"the run ended {state}")
    return first, time.monotonic() - begun


def _warm(home: Home) -> None:
    """A click that comes before the warm process has imported all waits for it."""
    log, deadline = home.directory / "logs" / "warm.log", time.monotonic() + 240
    while "warm after" not in log.read_text():
        if time.monotonic() > deadline:
            raise RuntimeError("the warm process does not come up")
        time.sleep(0.5)


def _deployment(ui: Ui) -> Any:
    deadline = time.monotonic() + 60
    while not (found := [each["id"] for each in ui.ask("POST", "/deployments/filter", {}) if each["name"] == "click"]):
        if time.monotonic() > deadline:
            raise RuntimeError("nothing is served")
        time.sleep(0.5)
    return found[0]


def _overheads(home: Home) -> dict[str, float]:
    """What MLflow was told of each stage; the first one warms Ray up and is left out."""
    program = (
        "import json, sys; from mlflow import MlflowClient; client = MlflowClient(sys.argv[1]);"
        "runs = client.search_runs(['1'], 'metrics.overhead_seconds >= 0');"
        "print(json.dumps({run.info.run_name: run.data.metrics['overhead_seconds'] for run in runs"
        " if 'mlflow.parentRunId' in run.data.tags and run.info.run_name != 'prepare'}))"
    )
    uri = Services(home.directory).server("mlflow").url
    done = subprocess.run([sys.executable, "-c", program, uri], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
