"""The dashboard over 1,000 runs of 8 stages with their curves: when the page is there, how fast a filter is, and what it holds.

The runs are written straight into MLflow's tables, as the client would have written them one by one. The dashboard is the
command that people start; the browser is Debian's Chromium with an empty cache. First paint is from asking for the page until
its answers stand there, the figure follows; a filter from the change of a control until the figure shows what it leaves: all by
the browser's clock. A run's stages differ from another's in a few fields, as those of sweeps do.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.servers.ports import LOOPBACK
from tests.bench.measured import Measured
from tests.browser import chromium

RUNS, POINTS, BATCH = 1000, 60, 100
LINE = ("prepare", "pretrain", "prune", "recover", "merge", "prune", "recover", "quantize")
ROUNDS = 5
FILTERS = ("prune.sparsity=0.6", "", "sparsegpt", "", "quantize.method=gptq", "")
ANSWERED = "return !!document.querySelector('.answer') && performance.now()"
DRAWN = "return !!document.querySelector('#pareto .main-svg .point') && performance.now()"
FILTER = """
const [words, done] = arguments, plot = document.querySelector("#pareto .js-plotly-plot"), began = performance.now();
const drawn = () => {
    plot.removeListener("plotly_afterplot", drawn);
    requestAnimationFrame(() => done(performance.now() - began));
};
plot.on("plotly_afterplot", drawn);
dash_clientside.set_props("c-find", {value: words});
"""


def fill(file: Path) -> None:
    """A thousand pipelines in a new database of MLflow's."""
    from mlflow import MlflowClient
    from mlflow.store.tracking.dbmodels import models as tables
    from sqlalchemy import create_engine, insert

    experiment = MlflowClient(f"sqlite:///{file}").create_experiment("winnow", (file.parent / "artifacts").as_uri())
    engine, dice = create_engine(f"sqlite:///{file}"), random.Random(0)
    kinds = (tables.SqlRun, tables.SqlTag, tables.SqlParam, tables.SqlMetric, tables.SqlLatestMetric)
    for first in range(0, RUNS, BATCH):
        rows: dict[Any, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for number in range(first, first + BATCH):
            _pipeline(rows, number, int(experiment), file.parent, dice)
        with engine.begin() as connection:
            for kind, some in rows.items():
                connection.execute(insert(kind), some)
    engine.dispose()


def _pipeline(rows: dict[Any, list[dict[str, Any]]], number: int, experiment: int, folder: Path, dice: random.Random) -> None:
    begun, recipe = 1_790_000_000_000 + 60_000 * number, f"recipe{number % 20}"
    parent, numbers, parents = uuid.UUID(int=dice.getrandbits(128)).hex, {}, {}
    perplexity, size = 20 * dice.uniform(1.0, 1.2), 8e6 * dice.uniform(0.5, 2)
    for place, kind in enumerate(LINE):
        method = {"prune": ("wanda", "sparsegpt", "magnitude")[number % 3], "quantize": "gptq"}.get(kind, "plain")
        address = f"{kind}/{method}-{dice.getrandbits(48):012x}"
        perplexity *= {"prune": dice.uniform(1.0, 1.4), "recover": dice.uniform(0.8, 1.0)}.get(kind, 1.01)
        size *= 0.3 if kind == "quantize" else 1.0
        told = {"perplexity": perplexity, "perplexity_low": perplexity - 1, "perplexity_high": perplexity + 1, "bytes": size}
        told |= {f"other_{index}": dice.random() for index in range(16)} | {"seconds": 10.0, "parameters": 2e6}
        told |= {"decode_tokens_per_second": dice.uniform(500, 900)}
        told |= {"training_flops": 1e12, "training_tokens": 1e6} if kind in ("pretrain", "recover") else {}
        params = {f"field_{index}": str(dice.randrange(3) if index < 3 else 0) for index in range(20)} | {
            f"method.{method}.scope": "layer"
        }
        params |= {"sparsity": f"0.{dice.choice((4, 5, 6))}"} if kind == "prune" else {}
        tags = {"winnow.stage": kind, "winnow.key": address, "winnow.address": address, "winnow.cached": "false"}
        tags |= {"mlflow.parentRunId": parent, "mlflow.runName": f"{kind}{place}"}
        tags |= {f"winnow.parent.{role}": one for role, one in parents.items()}
        curve = {"loss": 3.0, "tokens": 1e6, "sparsity": 0.5} if kind in ("pretrain", "recover") else {}
        run = uuid.UUID(int=dice.getrandbits(128)).hex
        _run(rows, run, f"{kind}{place}", experiment, folder, begun + place, tags, params, told, curve)
        numbers |= {f"{kind}{place}.{name}": value for name, value in told.items()}
        parents = {"data" if kind == "prepare" else "model": address}
    tags = {"winnow.recipe": recipe, "winnow.cached": "false", "winnow.git_commit": "c" * 40, "mlflow.runName": recipe}
    _run(rows, parent, recipe, experiment, folder, begun, tags, {}, numbers, {})


def _run(
    rows: dict[Any, list[dict[str, Any]]], run: str, name: str, experiment: int, folder: Path, begun: int, *told: Any
) -> None:
    of_runs, of_tags, of_params, of_metrics, of_latest = rows.values()
    tags, params, numbers, curve = told
    kept = {
        "run_uuid": run,
        "name": name,
        "source_type": "LOCAL",
        "user_id": "me",
        "status": "FINISHED",
        "experiment_id": experiment,
    }
    kept |= {
        "start_time": begun,
        "end_time": begun + 50_000,
        "lifecycle_stage": "active",
        "artifact_uri": f"{folder}/artifacts/{run}",
    }
    of_runs.append(kept)
    of_tags += [{"run_uuid": run, "key": key, "value": value} for key, value in tags.items()]
    of_params += [{"run_uuid": run, "key": key, "value": value} for key, value in params.items()]
    for key, value in numbers.items():
        row = {"run_uuid": run, "key": key, "value": value, "timestamp": begun, "step": POINTS, "is_nan": False}
        of_metrics.append(row)
        of_latest.append(row)
    for key, value in curve.items():
        points = [{"value": value * step / POINTS, "timestamp": begun + step, "step": step} for step in range(POINTS)]
        of_metrics += [{"run_uuid": run, "key": key, "is_nan": False, **point} for point in points]
        of_latest.append({"run_uuid": run, "key": key, "is_nan": False, **points[-1]})


@contextmanager
def served(home: Path) -> Iterator[tuple[str, psutil.Process, float]]:
    """The dashboard of a home: its address, its process, and when it was started."""
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--json"]
    environment = {**os.environ, "WINNOW_HOME": str(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}
    begun = time.monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], psutil.Process(process.pid), begun
        finally:
            process.terminate()


def everything_read(url: str) -> None:
    while b"all read" not in urllib.request.urlopen(f"{url}health").read():
        time.sleep(0.2)


def painted(url: str, profile: Path) -> tuple[float, float, Any]:
    """Seconds from asking for the page to its answers and to its figure, in a new browser."""
    driver = chromium(profile)
    driver.get(url)
    while not (answered := driver.execute_script(ANSWERED)):
        time.sleep(0.01)
    while not (drawn := driver.execute_script(DRAWN)):
        time.sleep(0.01)
    return answered / 1000, drawn / 1000, driver


def measure() -> list[Measured]:
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        fill(home / "mlflow.db")
        with served(home) as (url, process, begun):
            *_, driver = painted(url, home / "browser")
            cold = time.monotonic() - begun
            driver.quit()
            everything_read(url)
            read = time.monotonic() - begun
            paints, figures = [], []
            for number in range(ROUNDS):
                answered, drawn, driver = painted(url, home / f"browser{number}")
                paints.append(answered)
                figures.append(drawn)
                if number < ROUNDS - 1:
                    driver.quit()
            filters = [driver.execute_async_script(FILTER, words) for words in FILTERS]
            driver.quit()
            memory = process.memory_info().rss / 1e6
    of = f"{RUNS} runs of {len(LINE)} stages with curves, in {LOOPBACK}'s SQLite"
    every = ", ".join(f"{one:.0f}" for one in filters)
    return [
        Measured("dashboard.paint", sorted(paints)[ROUNDS // 2], 2.0, f"until the answers stand there, new browser; {of}", "s"),
        Measured("dashboard.figure", sorted(figures)[ROUNDS // 2], None, "until the figure is drawn too", "s"),
        Measured("dashboard.filter", sorted(filters)[len(filters) // 2], 200.0, f"control to figure; each: {every}", "ms"),
        Measured("dashboard.memory", memory, 500.0, "of the dashboard's process, everything read", "MB"),
        Measured("dashboard.cold", cold, None, "from the command to a figure of the newest runs", "s"),
        Measured("dashboard.read", read, None, "from the command until all runs are read, beside that browser", "s"),
    ]
