"""A whole recipe across hosts that share no checkout, no interpreter path and no /tmp: a Ray head and two workers, artifacts
in S3 (moto's server), MLflow and Prefect on PostgreSQL, submitted from a fourth host. A worker is cut off in mid-training,
another one removed in mid-pruning; what comes out is bit for bit what two undisturbed ranks on one machine make.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.pipeline import GRADUAL, LENGTH, Home, pretrain
from tests.pipeline.cloud import ONE_CORE, POSTGRES, Cloud, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not POSTGRES, reason="no PostgreSQL under /usr/lib/postgresql: apt-get install postgresql"),
]
PRUNING, TRAINING = "ray::tasks.job:produce", "ray::RayTrainWorker"  # what Ray calls the processes


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    why_not = cloud.network.why_not
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nNO NAMESPACES HERE ({why_not}): three Ray nodes on one host" if why_not else "\nthree hosts", flush=True)
    try:
        cloud.start()
        yield cloud
    finally:
        cloud.end()


@pytest.fixture(scope="module")
def recipe(cloud: Cloud) -> str:
    """Its corpus lies on the storage that all hosts share."""
    home, given = Home(cloud.network.shared), {"sequences": 16, "length": LENGTH}
    stages = [
        {"prune": {"method": "sparsegpt", "pattern": "2:4", **given}},
        {"quantize": {"method": {"gptq": {"scheme": "W8A8"}}, **given}},
    ]
    evaluate = {"perplexity": {"length": LENGTH, "tokens": 1024}, "pattern": {}}
    document = yaml.safe_load(home.recipe("hosts", pretrain(GRADUAL, 120), *stages, evaluate=evaluate).read_text())
    document["stages"][0]["prepare"]["corpus"]["files"]["paths"] = [f"{cloud.submitter.shared}/corpus.jsonl"]
    return cloud.write("recipe.yaml", document)


@pytest.fixture(scope="module")
def undisturbed(cloud: Cloud, recipe: str) -> list[dict[str, Any]]:
    """The models that two ranks, and for what is not trained one process, make on the submitter's host without a cluster."""
    place = cloud.submitter.place
    profile = cloud.write("here.yaml", {"store": f"{place}/store", "scratch": f"{place}/scratch", "stages": ONE_CORE})
    ranks = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]
    for python, part in ((ranks, ["--until", "pretrain"]), (["-m"], [])):
        run = cloud.winnow("run", recipe, "-p", profile, "--here", "--json", *part, python=python)
        out, _ = run.communicate(timeout=500)
        assert run.returncode == 0, (cloud.root / "winnow.err").read_text()
    return json.loads(out)["models"]


def test_a_recipe_survives_a_cut_cable_and_a_lost_machine(cloud: Cloud, recipe: str, undisturbed: list) -> None:
    first, second = cloud.workers
    cloud.wait()
    run = cloud.winnow("run", recipe, "-p", cloud.profile(), "--json")
    checkpoints = "scratch/pretrain/*/checkpoints/step-*/manifest.json"
    until("a checkpoint", lambda: list(cloud.network.shared.glob(checkpoints)))
    assert first.runs(TRAINING) and second.runs(TRAINING)
    second.cut()
    until("Ray misses the host that was cut off", lambda: cloud.nodes()[second.address] == ["DEAD"])
    second.mend()
    until("pruning", lambda: first.runs(PRUNING) or second.runs(PRUNING), 500)
    lost, left = (first, second) if first.runs(PRUNING) else (second, first)
    lost.remove()
    out, _ = run.communicate(timeout=700)
    assert run.returncode == 0, out + (cloud.root / "winnow.err").read_text()
    models = json.loads(out)["models"]
    assert [results(model) for model in models] == [results(model) for model in undisturbed]
    for model in models:
        there, here = cloud.record(model["address"]), cloud.submitter.own / "store" / model["address"] / "record.json"
        assert weights(there) == weights(json.loads(here.read_text())) != {}
        if model["stage"] != "pretrain" and not cloud.network.why_not:
            assert there["environment"]["host"] == left.name
    assert cloud.tracked() >= 1 + len(models)


def results(model: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the machine."""
    return {name: value for name, value in model.items() if name not in ("seconds", "peak_memory_bytes")}


def weights(record: dict[str, Any]) -> dict[str, Any]:
    return {name: file for name, file in record["files"].items() if name.endswith(".safetensors")}
