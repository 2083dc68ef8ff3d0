"""What the house costs beside the work: a small quickstart through ``winnow run``, cold, and again with all of it cached.

Every stage is the quickstart's, cut down until hardly any work is left, in a home of its own. Servers are what the
command spends before and after its flow (imports, plan, Ray and Prefect up and down); a stage's overhead is the time
from when it may start to its record, less the time inside its own run: waiting for cores that an evaluation holds is in
it. The first stage also warms Ray up and is shown by itself; evaluations run beside the next stages and wait for cores,
so they count in the total only. The total is all the wall time in which no stage was inside its run.
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

from tests.bench import quickstart
from tests.bench.measured import Measured

SMALL = {
    "prepare": {},
    "pretrain": {"tokens": 16 * 4096, "method": {"gradual": {"sparsity": 0.5, "interval": 2}}},
    "prune": {"sequences": 16},
    "recover": {"tokens": 4 * 4096},
    "quantize": {"sequences": 16},
}
EVALUATE = {
    "perplexity": {"length": 128, "tokens": 4096},
    "multiple_choice": {"items": 20},
    "pattern": {},
    "size": {},
    "speed": {},
}


def small() -> dict[str, Any]:
    recipe = {**quickstart.recipe(), "name": "bench", "evaluate": EVALUATE}
    recipe["stages"] = [{name: {**fields, **SMALL[name]}} for stage in recipe["stages"] for name, fields in stage.items()]
    return recipe


def run(recipe: Path, home: Path) -> tuple[dict[str, Any], float]:
    """(the run's JSON, wall seconds of the command)."""
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe), "--json"]
    environment = {**os.environ, "WINNOW_HOME": str(home)}
    begun = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"winnow run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout), time.monotonic() - begun


def measure() -> list[Measured]:
    with tempfile.TemporaryDirectory() as directory:
        recipe, home = Path(directory) / "recipe.yaml", Path(directory) / "home"
        recipe.write_text(yaml.safe_dump(small()))
        cold, wall = run(recipe, home)
        again, cached = run(recipe, home)
    assert not any(stage["cached"] for stage in cold["stages"]) and all(stage["cached"] for stage in again["stages"])
    servers = wall - cold["seconds"]
    overheads = {stage["id"]: stage["overhead_seconds"] for stage in cold["stages"]}
    first, *further = [id for id in overheads if "." not in id]
    slowest = max(further, key=overheads.__getitem__)
    evaluations = [seconds for id, seconds in overheads.items() if "." in id]
    each = ", ".join(f"{id} {overheads[id]:.1f}" for id in further)
    return [
        Measured(
            "orchestration.total",
            servers + cold["overhead_seconds"],
            90,
            f"no stage inside its run, of {wall:.0f} s cold; {cold['overhead_seconds']:.1f} s of it in the flow",
            "s",
        ),
        Measured("orchestration.servers", servers, 20, "cold command less its flow: imports, plan, servers up and down", "s"),
        Measured("orchestration.first", overheads[first], None, f"overhead of {first}, which warms Ray up", "s"),
        Measured("orchestration.stage", overheads[slowest], 10, f"highest overhead of a further stage: {each}", "s"),
        Measured(
            "orchestration.evaluation",
            max(evaluations),
            None,
            f"highest of {len(evaluations)} evaluations, waiting for cores beside the next stage included",
            "s",
        ),
        Measured("orchestration.cached", cached, 15, "the same command again, everything cached: wall time", "s"),
    ]
