"""One recipe from text to a sparse, quantized, evaluated model, with nothing running before or after; then once more."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.profile import CHECKOUT
from tests.pipeline import GRADUAL, LENGTH, SHARED, Done, Home, Ledger, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 40
STAGES = ("prepare", "pretrain", "prune", "recover", "quantize")
METHODS = ("files", "gradual", "wanda", "masked", "gptq")
EVALUATE = {
    "perplexity": {"length": LENGTH, "tokens": 4096},
    "multiple_choice": {"items": 20},
    "pattern": {},
    "size": {},
    "speed": {"prompt": 16, "new": 4, "repeats": 1},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "quickstart") as home:
        yield home


@pytest.fixture(scope="module")
def recipe(home: Home) -> Path:
    recover = {"recover": {"tokens": 10 * 16 * LENGTH, "learning_rate": 1e-3, **SHARED}}
    quantize = {"quantize": {"method": {"gptq": {"bits": 4, "group_size": 32}}, "sequences": 16, "length": LENGTH}}
    return home.recipe("small", pretrain(GRADUAL, STEPS), prune(), recover, quantize, evaluate=EVALUATE)


@pytest.fixture(scope="module")
def first(home: Home, recipe: Path) -> Done:
    return home.run(recipe)


@pytest.fixture(scope="module")
def again(home: Home, recipe: Path, first: Done) -> Done:
    done = home.run(recipe)
    print(f"\nthe first run took {first.seconds:.1f} s, the cached one {done.seconds:.1f} s")
    return done


@pytest.fixture(scope="module")
def ledger(home: Home, first: Done) -> Ledger:
    return Ledger.of(home)


def test_stdout_is_one_json_object_that_tells_every_stage_and_model(first: Done) -> None:
    assert first.out.count("\n") == 1 and first.err == ""
    stages, models = first.summary["stages"], first.summary["models"]
    made = [stage for stage in stages if stage["name"] != "evaluate"]
    assert [(stage["id"], stage["method"]) for stage in made] == list(zip(STAGES, METHODS, strict=True))
    measured = [f"{id}.{name}" for id in STAGES[1:] for name in sorted(EVALUATE)]
    assert [stage["id"] for stage in stages if stage["name"] == "evaluate"] == measured
    for stage in stages:
        assert stage["address"] == f"{stage['name']}/{stage['method']}-{stage['key'][:12]}"
        assert stage["done"] and not stage["cached"] and stage["seconds"] > 0 and stage["metrics"]
    assert [model["stage"] for model in models] == list(STAGES[1:])
    for model in models:
        assert 1 < model["perplexity"] < first.summary["unigram_perplexity"] and 0 <= model["task_accuracy"] <= 1
        assert model["sparsity"] >= 0.5 and model["pattern_holds"] == 1 and model["live_parameters"] < model["parameters"]
        assert model["decode_tokens_per_second"] > 0
    assert models[-1]["bytes"] < 0.6 * models[0]["bytes"]


def test_the_embedded_servers_leave_no_process(home: Home, first: Done) -> None:
    assert len(first.seen) > 10, "the servers were not seen at all"
    assert first.survivors == [] and not (home.directory / "services.json").exists()


def test_a_second_run_is_cached_and_starts_nothing(first: Done, again: Done) -> None:
    assert all(stage["cached"] for stage in again.summary["stages"]) and again.seen == set()
    assert again.summary["models"] == first.summary["models"]
    names = ("id", "key", "address", "seconds", "metrics")
    assert [[stage[name] for name in names] for stage in again.summary["stages"]] == [
        [stage[name] for name in names] for stage in first.summary["stages"]
    ]


def test_what_measures_time_runs_when_everything_else_is_done(home: Home, first: Done) -> None:
    ended, started = [], []
    for stage in first.summary["stages"]:
        record = json.loads((home.directory / "store" / stage["address"] / "record.json").read_text())
        end = datetime.fromisoformat(record["created"]).timestamp()
        (started if stage["method"] == "speed" else ended).append(end - (stage["method"] == "speed") * record["seconds"])
    assert len(started) == 4 and min(started) >= max(ended)


def test_mlflow_holds_a_parent_and_a_child_for_every_stage_with_all_that_was_measured_of_its_model(
    first: Done, recipe: Path, ledger: Ledger
) -> None:
    parent = ledger.parents("small")[0]
    stages = {stage["id"]: stage for stage in first.summary["stages"]}
    data = stages["prepare"]["address"]
    digest = hashlib.sha256(recipe.read_bytes()).hexdigest()
    lock = hashlib.sha256((CHECKOUT / "infra" / "requirements.lock").read_bytes()).hexdigest()
    tags = {"winnow.recipe_sha256": digest, "winnow.lock_sha256": lock, "winnow.dataset": data}
    assert parent.info.status == "FINISHED" and tags.items() <= parent.data.tags.items()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert parent.data.tags["winnow.git_commit"].removesuffix("-dirty") == head.strip()
    assert parent.data.tags["prefect.flow_run_id"] != "none"
    assert [given.dataset.source for given in parent.inputs.dataset_inputs] == [data]
    children = ledger.children(parent)
    assert {id: run.data.tags["winnow.address"] for id, run in children.items()} == {
        id: stage["address"] for id, stage in stages.items() if id in STAGES
    }
    assert all(run.info.status == "FINISHED" for run in children.values())
    for id, stage in stages.items():
        run = children[id.partition(".")[0]]
        assert stage["metrics"].items() <= run.data.metrics.items()
        assert id in STAGES or run.data.tags[f"winnow.evaluate.{stage['method']}"] == stage["address"]
    assert {"loss", "learning_rate"} <= ledger.curves(children["pretrain"]).keys()
    models = {model["address"]: model for model in first.summary["models"]}
    logged = ledger.models(parent)
    assert logged.keys() == models.keys()
    for address, model in logged.items():
        assert str(model.status).endswith("READY") and model.source_run_id == children[models[address]["stage"]].info.run_id
        assert {metric.key: metric.value for metric in model.metrics}["perplexity"] == models[address]["perplexity"]


def test_a_cached_run_leaves_the_same_numbers_and_figures_and_names_the_runs_that_made_its_stages(
    again: Done, ledger: Ledger, tmp_path: Path
) -> None:
    one, two = ledger.parents("small")
    of_the_run = {"seconds", "overhead_seconds"}
    numbers = [{name: value for name, value in run.data.metrics.items() if name not in of_the_run} for run in (one, two)]
    assert numbers[0] == numbers[1] and numbers[0]["quantize/sparsity"] >= 0.5
    assert two.data.metrics["seconds"] < one.data.metrics["seconds"]
    made = ledger.children(one)
    assert ledger.children(two) == {}
    kept = [{file.path for file in ledger.client.list_artifacts(run.info.run_id)} & {"winnow.html"} for run in (one, two)]
    assert kept == [{"winnow.html"}, set()]  # all that was made by the first has its page there
    assert {id: two.data.tags[f"winnow.cached.{id}"] for id in made} == {id: run.info.run_id for id, run in made.items()}
    figures = [ledger.figures(run, _folder(tmp_path / f"{side}")) for side, run in enumerate((one, two))]
    assert figures[0] == figures[1]
    drawn = set(figures[0]).union(*(ledger.figures(run, _folder(tmp_path / id)) for id, run in made.items()))
    assert {Path(name).stem for name in drawn} == {"training_curves", "sparsity_by_layer", "quality_against_bytes"}
    assert len(ledger.client.search_logged_models([ledger.experiment], max_results=1000)) == len(ledger.models(one))


STRANGER = """
import glob, json, math, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
model_directory, data, length, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
(file,) = glob.glob(data + "/heldout-*.npy")
tokens = np.load(file).astype(np.int64)
windows = min(len(tokens) // length, most // length)
tokens_BT = torch.from_numpy(tokens[: windows * length].reshape(windows, length))
model = AutoModelForCausalLM.from_pretrained(model_directory, dtype="auto").eval()
with torch.inference_mode():
    logits_BTV = model(tokens_BT).logits[:, :-1].double()
loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())
quantization = CompressedTensorsConfig(run_compressed=False)
plain = AutoModelForCausalLM.from_pretrained(model_directory, dtype="auto", quantization_config=quantization)
groups = kept = matrices = 0
for module in plain.model.layers.modules():
    if isinstance(module, torch.nn.Linear):
        live = (module.weight.detach().reshape(-1, 4) != 0).sum(1)
        groups, kept, matrices = groups + len(live), kept + int((live <= 2).sum()), matrices + 1
ours = [name for name in sys.modules if name.partition(".")[0] in ("tasks", "flows", "cluster", "dashboards")]
print(json.dumps({"perplexity": math.exp(loss), "groups": groups, "kept": kept, "matrices": matrices, "ours": ours,
                  "levels": max(len(row.unique()) for row in plain.model.layers[0].mlp.up_proj.weight[:, :32])}))
"""


def test_the_exported_model_keeps_the_pattern_and_the_perplexity_for_who_never_heard_of_us(
    home: Home, first: Done, tmp_path: Path
) -> None:
    ours, target = first.summary["models"][-1], tmp_path / "exported"
    home.winnow("export", ours["address"], target, "-p", home.profile)
    data = home.directory / "store" / first.summary["stages"][0]["address"]
    found = stranger(target, data, EVALUATE["perplexity"]["length"], EVALUATE["perplexity"]["tokens"])
    assert found["ours"] == []
    assert (found["matrices"], found["groups"]) == (14, 2 * (64 * (64 + 64) + 64 * (32 + 32) + 3 * 64 * 128) // 4)
    assert found["kept"] == found["groups"] and found["levels"] <= 16
    assert f"{found['perplexity']:.4g}" == f"{ours['perplexity']:.4g}"


def stranger(*arguments: object) -> dict[str, Any]:
    """Plain transformers in an isolated interpreter that has nothing of this checkout."""
    command = [sys.executable, "-I", "-c", STRANGER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_dense_twin_shares_the_data_and_costs_as_much(home: Home, first: Done) -> None:
    """The budget equalises what the method can save: the prunable matrices, within the rounding to whole intervals.

    Attention scores and the LM head stay dense, so the extra tokens of the sparse twin pay for them in full. They are
    40 % of this tiny model (and a few percent of a large one), hence the total is compared after adding just that.
    """
    done = home.run(home.recipe("twin", pretrain("dense", STEPS), evaluate={"perplexity": EVALUATE["perplexity"]}))
    stages = {stage["id"]: stage for stage in done.summary["stages"]}
    sparse = {stage["id"]: stage for stage in first.summary["stages"]}["pretrain"]["metrics"]
    dense = stages["pretrain"]["metrics"]
    assert stages["prepare"]["cached"] and not stages["pretrain"]["cached"] and dense["sparsity"] == 0
    assert stages["prepare"]["key"] == first.summary["stages"][0]["key"]
    assert sparse["average_parameters"] * sparse["training_tokens"] == pytest.approx(
        dense["average_parameters"] * dense["training_tokens"], rel=0.05
    )
    always_dense = dense["training_flops"] / dense["training_tokens"] - 6 * dense["average_parameters"]
    extra = always_dense * (sparse["training_tokens"] - dense["training_tokens"])
    print(f"\nsparse / dense training FLOPs: {sparse['training_flops'] / dense['training_flops']:.3f} in all")
    assert sparse["training_flops"] == pytest.approx(dense["training_flops"] + extra, rel=0.05)
    assert done.survivors == []


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
