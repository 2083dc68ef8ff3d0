"""``winnow law`` fits what the store holds, keeps it in a file, plans from that file, and says in one line what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import yaml

from cluster.store.local import LocalStore
from flows.evidence import gather, read_law
from flows.plan import make_plan
from flows.recipe import load_recipe
from tasks.train.scaling.activation import ActivationLaw
from tasks.train.scaling.law import ScalingLaw
from tests.flows.command import winnow
from tests.flows.recipes import BASE, HUB, publish

LAW = ScalingLaw(1.5, 30.0, 0.3, 60.0, 0.3)
PREPARE = {"prepare": {"corpus": HUB, "tokenizer": {"train": 300}}}
SPARSITIES = {"dense": 0.0, "half": 0.5, "most": 0.8}


def stage(name: str, tokens: int) -> dict:
    method = {"gradual": {"sparsity": SPARSITIES[name], "interval": 1}} if name != "dense" else "dense"
    return {"id": f"{name}-{tokens}", "from": "prepare", "pretrain": {"method": method, "tokens": tokens}}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    return begin(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def law(tmp_path_factory):
    """The law of the nine runs, as its file holds it."""
    place = tmp_path_factory.mktemp("law")
    with pytest.MonkeyPatch.context() as monkeypatch:
        finish(begin(place, monkeypatch), place)
        assert winnow("law", "fit", "sweep.yaml", "--output", "law.json", "--resamples", "5") == 0
    return (place / "law.json").read_text()


def begin(tmp_path, monkeypatch) -> LocalStore:
    """A recipe of nine runs, and a store below a home of its own."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    stages = [PREPARE, *(stage(name, tokens) for tokens in (10**6, 10**7, 10**8) for name in SPARSITIES)]
    recipe = {**BASE, "name": "sweep", "evaluate": {"perplexity": {}}, "stages": stages}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(recipe))
    return LocalStore(tmp_path / "home" / "store")


def finish(store: LocalStore, tmp_path, **odd: float) -> list[str]:
    """Publish every run of the sweep at a loss of LAW, its size growing with its budget; addresses of the runs."""
    addresses = []
    for step in make_plan(load_recipe("sweep.yaml"), store).steps:
        model = step.node.measures or step.id
        name, _, tokens = model.partition("-")
        if tokens:
            size, sparsity = float(tokens) ** 0.8, SPARSITIES[name]
            average = size * (1 - 0.6 * sparsity)
            seen = float(tokens) / (1 - 0.6 * sparsity)
            run = {"prunable_parameters": size, "average_parameters": average, "sparsity": sparsity, "training_tokens": seen}
            metrics = {"heldout_loss": LAW.loss(average, seen)} if step.node.measures else run
            metrics = {name: value for name, value in {**metrics, **odd}.items() if value is not None}
            record = publish(store, step, tmp_path / "file", **metrics)
            addresses += [record.address] if record.stage == "pretrain" else []
    return addresses


def complaint(capsys, *arguments: str) -> str:
    """The one line a refused command leaves."""
    assert winnow(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_a_recipe_and_the_addresses_of_its_runs_are_the_same_evidence(sweep, tmp_path):
    addresses = finish(sweep, tmp_path)
    runs = gather(["sweep.yaml"], sweep)
    assert list(runs) == addresses and gather([*addresses, "sweep.yaml"], sweep) == runs
    most = runs[addresses[2]]
    assert (most.initial, most.final) == (pytest.approx(10**4.8), pytest.approx(0.2 * 10**4.8))
    assert most.average < most.initial and most.loss == LAW.loss(most.average, most.tokens)


def test_fit_prints_one_object_and_keeps_it(sweep, tmp_path, capsys):
    finish(sweep, tmp_path)
    assert winnow("law", "fit", "sweep.yaml", "--json", "--output", "law.json", "--plot", "law.png", "--resamples", "5") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "law.json").read_text())
    assert printed.keys() == {"law", "verdict", "counts", "chosen", "resampled", "runs"}
    assert "average N explains the losses best" in printed["verdict"]
    assert printed["law"] == printed["counts"]["average"]["law"] and printed["law"].keys() == asdict(LAW).keys()
    assert printed["counts"].keys() == {"average", "initial", "final"}
    assert len(printed["runs"]) == 9 and len(printed["resampled"]) == 5
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_fit_says_that_the_average_explains_the_losses_best(sweep, tmp_path, capsys):
    assert winnow("law", "fit", *finish(sweep, tmp_path), "--resamples", "1") == 0
    assert "average N explains the losses best" in capsys.readouterr().out


def test_plan_gives_size_tokens_sparsity_window_and_band(law, sweep, tmp_path, capsys):
    (tmp_path / "law.json").write_text(law)
    capsys.readouterr()
    assert winnow("law", "plan", "--flops", "1e14", "--final-params", "1e6", "--json", "--plot", "plan.png") == 0
    printed = json.loads(capsys.readouterr().out)
    way = printed["route"]
    assert 0 < way["sparsity"] < 0.8 and way["start"] < way["end"] < way["tokens"]
    assert way["initial_parameters"] * (1 - way["sparsity"]) == pytest.approx(way["final_parameters"]) == pytest.approx(1e6)
    assert 6 * way["average_parameters"] * way["tokens"] == pytest.approx(1e14, rel=1e-6)
    assert printed["loss_band"] == pytest.approx([printed["loss"]] * 2)  # losses without noise leave no doubt
    assert printed["loss"] == pytest.approx(LAW.loss(way["average_parameters"], way["tokens"]), rel=0.01)
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_plan_names_the_stage_to_run_and_what_is_extrapolated(law, sweep, tmp_path, capsys):
    (tmp_path / "law.json").write_text(law)
    capsys.readouterr()
    assert winnow("law", "plan", "--flops", "1e20", "--final-params", "1e8") == 0
    printed = capsys.readouterr().out
    assert "- pretrain: {method: {gradual: {sparsity: 0." in printed and "6 x average parameters x tokens" in printed
    assert "extrapolated: 2e+08 average parameters, the runs had" in printed.replace("\n", " ")


def test_runs_that_cannot_be_fitted_are_refused(sweep, tmp_path, capsys):
    assert "sweep.yaml: dense-1000000 is not finished (9 of 9)" in complaint(capsys, "law", "fit", "sweep.yaml")
    addresses = finish(sweep, tmp_path)
    assert "6 runs or more are needed to fit five constants, got 2" in complaint(capsys, "law", "fit", *addresses[:2])
    evaluation = sweep.addresses("evaluate")[0]
    assert f"{evaluation} is no run of pretrain" in complaint(capsys, "law", "fit", evaluation)
    assert "no artifact 'pretrain/nosuch'" in complaint(capsys, "law", "fit", "pretrain/nosuch")
    assert "recipe nosuch: no such file" in complaint(capsys, "law", "fit", "nosuch")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("heldout_loss", "has no heldout_loss; put perplexity into evaluate"),
        ("prunable_parameters", "does not tell its prunable_parameters"),
    ],
)
def test_a_run_without_a_needed_number_is_named(missing, message, sweep, tmp_path, capsys):
    address = finish(sweep, tmp_path, **{missing: None})[0]
    assert f"winnow: {address} {message}" in complaint(capsys, "law", "fit", "sweep.yaml")


def test_losses_of_different_measurements_are_not_mixed(sweep, tmp_path, capsys):
    first = finish(sweep, tmp_path)
    text = (tmp_path / "sweep.yaml").read_text()
    (tmp_path / "sweep.yaml").write_text(text.replace("train: 300", "train: 301"))
    second = finish(sweep, tmp_path)
    assert "the runs were measured differently" in complaint(capsys, "law", "fit", *first[:4], *second[4:])


PLAN = ("law", "plan", "--flops", "1e14", "--final-params", "1e6")


def test_a_law_file_that_is_missing_or_odd_is_refused(sweep, tmp_path, capsys):
    assert "law law.json: no such file; make it with winnow law fit" in complaint(capsys, *PLAN)
    for text, message in (
        ("{", "law law.json: invalid JSON"),
        ("[]", "law law.json: input should be an object"),
        ("{}", "law law.json.law: field required"),
        ('{"law": {"E": 1}}', "law law.json.law.A: field required"),
        ('{"law": {"E": 1, "A": 1, "alpha": -1, "B": 1, "beta": 1}}', "law: constants are finite and not negative"),
    ):
        (tmp_path / "law.json").write_text(text)
        assert message in complaint(capsys, *PLAN)


def test_an_impossible_budget_is_refused(law, sweep, tmp_path, capsys):
    (tmp_path / "law.json").write_text(law)
    capsys.readouterr()
    assert len(read_law(tmp_path / "law.json").runs) == 9
    assert "max-sparsity 1 is not in [0, 1)" in complaint(capsys, *PLAN, "--max-sparsity", "1")
    assert "flops 100 buys" in complaint(capsys, "law", "plan", "--flops", "100", "--final-params", "1e6")
    assert "'--flops'" in complaint(capsys, "law", "plan", "--final-params", "1e6")


def test_the_law_of_activation_is_fitted_to_runs_over_more_and_more_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    truth, budgets = ActivationLaw("falls", 0.07, (0.08, 0.7, -3.4), 0.0), [10**9 * step for step in range(2, 42, 4)]
    stages = [PREPARE, *(stage("dense", tokens) for tokens in budgets)]
    recipe = {**BASE, "name": "curve", "evaluate": {"activation_sparsity": {"error": 0.2}}, "stages": stages}
    (tmp_path / "curve.yaml").write_text(yaml.safe_dump(recipe))
    store = LocalStore(tmp_path / "home" / "store")
    assert "is not finished" in complaint(capsys, "law", "activation", "curve.yaml")
    for step in make_plan(load_recipe("curve.yaml"), store).steps:
        _, _, tokens = (step.node.measures or step.id).partition("-")
        if tokens:
            silent = {"activation_sparsity": 1 - float(truth.ratio(float(tokens)))}
            publish(store, step, tmp_path / "file", **silent if step.node.measures else {"training_tokens": float(tokens)})
    assert winnow("law", "activation", "curve.yaml", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["law"]["trend"] == "falls" and told["law"]["limit"] == pytest.approx(0.07, abs=1e-4)
    assert winnow("law", "activation", "curve.yaml") == 0
    assert "the share of neurons in use falls with tokens, to 7.00%" in capsys.readouterr().out
