"""A gate means what it says, judges the models that no other is made from, and is told wherever numbers are."""

from __future__ import annotations

import io

import pytest
import yaml
from rich.console import Console

from cluster.store.local import LocalStore
from flows.chronicle import Chronicle
from flows.display import models_table
from flows.gates import failures, read_gate
from flows.markdown import run_page
from flows.summary import summarise
from tests.flows.command import winnow
from tests.flows.recipes import BASE, plan, publish, recipe
from tests.flows.test_chronicle import Ledger

DENSE = {"perplexity": 20.0, "accuracy.arc": 0.5}
WITHIN = "perplexity <= 1.05 * dense"


@pytest.mark.parametrize(
    "text, numbers, passes",
    [
        (WITHIN, {"perplexity": 21.0}, True),
        (WITHIN, {"perplexity": 21.1}, False),
        ("perplexity <= dense + 1", {"perplexity": 21.0}, True),
        ("perplexity < dense", {"perplexity": 20.0}, False),
        ("perplexity<=30", {"perplexity": 21.0}, True),
        ("flips <= 2 %", {"flips": 0.02}, True),
        ("flips <= 2%", {"flips": 0.021}, False),
        ("accuracy.arc >= dense - stderr", {"accuracy.arc": 0.46, "accuracy_stderr.arc": 0.05}, True),
        ("accuracy.arc >= dense - stderr", {"accuracy.arc": 0.44, "accuracy_stderr.arc": 0.05}, False),
        ("accuracy.arc >= dense - 2 * stderr", {"accuracy.arc": 0.44, "accuracy_stderr.arc": 0.05}, True),
        ("accuracy.arc >= 95 % * dense", {"accuracy.arc": 0.475}, True),
        ("accuracy.arc > 0.95 dense", {"accuracy.arc": 0.475}, False),
        ("bytes <= 1e6", {"bytes": 10**6 + 1}, False),
        ("flips <= 6 %", {"flips": 0.01 + 0.05}, True),
        ("flips < 6 %", {"flips": 0.01 + 0.05}, False),
        ("accuracy.arc >= dense - .02", {"accuracy.arc": 0.48}, True),
        ("accuracy.arc >= dense - 2e-2", {"accuracy.arc": 0.47}, False),
        ("accuracy.AraDiCE_boolq-x >= .5", {"accuracy.AraDiCE_boolq-x": 0.5}, True),
        ("pattern", {"pattern_holds": 1.0}, True),
        ("pattern", {"pattern_holds": 0.999}, False),
        ("pattern", {}, None),
        ("flips <= 2 %", {"perplexity": 1.0}, None),
        ("accuracy.arc >= dense - stderr", {"accuracy.arc": 0.46}, None),
    ],
)
def test_it_is_judged_on_the_numbers(text, numbers, passes):
    assert read_gate(text).judge(numbers, DENSE)["passes"] is passes


def test_without_the_reference_there_is_no_verdict():
    assert read_gate(WITHIN).judge({"perplexity": 1.0}, {}) == {"gate": WITHIN, "value": 1.0, "limit": None, "passes": None}


@pytest.mark.parametrize(
    "text",
    ["perplexity", "perplexity = 3", "perplexity <=", "<= 3", "a <= b", "flips <= 2 % + 1", "a <= * dense", 3, "x <= 1.2.3"],
)
def test_what_is_no_requirement_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^recipe.require\[0\]: .*write for example") as refusal:
        recipe(require=[text])
    assert "\n" not in str(refusal.value)


CHECKPOINT = {"checkpoint": {"hub": "a/b", "revision": 40 * "c"}}


@pytest.mark.parametrize(
    "gate, header, complaint",
    [
        (
            "speed_of_light <= 1",
            {},
            "no evaluator of this recipe measures speed_of_light; list one that does, or choose one of sparsity, bytes,",
        ),
        (
            "flips <= 2 %",
            {},
            "no evaluator of this recipe measures flips; list one that does, or choose one of sparsity, bytes,",
        ),
        ("sparsity >= 40", {}, "sparsity is a share, from 0 to 1; write 40 % or 0.4$"),
        ("bytes.arc <= 1", {}, "size measures no bytes.arc; choose one of bytes$"),
        ("bytes <= dense + stderr", {}, "no evaluator of this recipe measures bytes_stderr"),
        ("bytes <= dense", {"stages": 2}, r"no model that it judges \(pretrain\) has a dense one"),
        ("bytes <= 1", {"stages": 1}, "no stage makes a model"),
    ],
)
def test_what_no_model_could_be_judged_by_is_refused(gate, header, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        recipe(*BASE["stages"][: header.pop("stages", 5)], require=[gate], **header)
    assert str(refusal.value).startswith(f"recipe.require[0]: {gate!r}") and "\n" not in str(refusal.value)


def test_a_checkpoint_that_is_not_measured_is_no_model_to_compare_with():
    prepare, prune = {"prepare": {**BASE["stages"][0]["prepare"], "tokenizer": CHECKPOINT}}, BASE["stages"][2]
    with pytest.raises(ValueError, match="dense model of prune is .*a/b.*, which this recipe does not measure; put load: {}"):
        recipe(prepare, prune, model=CHECKPOINT, require=["bytes <= dense"])
    assert recipe(prepare, {"load": {}}, prune, model=CHECKPOINT, require=["bytes <= dense"]).require


def test_names_of_texts_and_tasks_are_known_beforehand(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    evaluate = {"perplexity": {"texts": {"wiki": {"files": {"paths": [str(tmp_path / "a.txt")]}}}}}
    assert recipe(evaluate=evaluate, require=["perplexity.wiki <= 30", "perplexity <= 30", "sparsity >= 0.5"]).require
    with pytest.raises(ValueError, match="perplexity measures no perplexity.wikj; choose one of perplexity, perplexity.wiki$"):
        recipe(evaluate=evaluate, require=["perplexity.wikj <= 30"])


def test_a_gate_is_no_part_of_any_key(tmp_path):
    plain, gated = plan(LocalStore(tmp_path / "store")), plan(LocalStore(tmp_path / "store"), require=["bytes <= dense"])
    assert [step.artifact.key for step in plain.steps] == [step.artifact.key for step in gated.steps]


def test_strict_where_nothing_is_required_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    (tmp_path / "gated.yaml").write_text(yaml.safe_dump({**BASE, "require": ["bytes <= dense"]}))
    assert winnow("run", str(tmp_path / "gated.yaml"), "--strict", "--until", "prepare") == 2
    told = capsys.readouterr()
    assert "gates are judged where all models of the recipe are there" in told.err
    assert told.err.startswith("winnow: --strict: nothing is required") and told.err.count("\n") == 1 and not told.out


class Judged:
    """A run of pretrain, prune and quantize whose models have 100, 90 and 50 bytes, told to MLflow's ledger."""

    def __init__(self, folder, *gates: str, **numbers: float) -> None:
        stages = [*BASE["stages"][:3], BASE["stages"][4]]
        made = plan(LocalStore(folder / "store"), *stages, evaluate=["size", "divergence"], require=list(gates))
        chronicle = Chronicle(made, LocalStore(folder / "store"), Ledger())
        for step in made.steps:
            chronicle.started(step)
            told = {"bytes": {"pretrain": 100, "prune": 90, "quantize": 50}[step.node.measures]} if ".size" in step.id else {}
            told |= numbers if step.id == "quantize.divergence" else {}
            chronicle.finished(step, publish(chronicle.store, step, folder / step.id, **told), 0.0)
        self.summary = summarise(made, chronicle.records, {}, 0.0)
        chronicle.close(self.summary, "FINISHED")
        self.tags, self.models = chronicle.tracking.tags, self.summary["models"]

    @property
    def table(self) -> str:
        console = Console(file=io.StringIO(), width=120)
        console.print(models_table(self.models, None, 120))
        return console.file.getvalue()


def test_the_last_models_are_judged_against_what_they_came_from(tmp_path):
    run = Judged(tmp_path, "bytes <= 50 % * dense", "bytes > 0.5 * parent")
    assert [model.get("gates") for model in run.models[:2]] == [None, None]
    assert [(one["value"], one["limit"], one["passes"]) for one in run.models[2]["gates"]] == [(50, 50, True), (50, 45, True)]
    assert failures(run.models) == [] and "passes" in run.table
    assert run.tags[None]["winnow.gates"] == run.tags[None]["winnow.gates.quantize"] == "passes"
    assert run.tags["quantize"]["winnow.gates"] == "passes" and "winnow.gates" not in run.tags["prune"]


def test_what_fails_is_told_with_its_gate_everywhere(tmp_path):
    run = Judged(tmp_path, "bytes < 50", "bytes <= 60")
    told = "bytes < 50 (50, and the limit is 50)"
    assert failures(run.models) == [f"quantize fails {told}"]
    assert run.tags[None]["winnow.gates"] == "fails" and run.tags["quantize"]["winnow.gates"] == f"fails: {told}"
    rows = [line for line in run.table.splitlines() if "require" in line]
    assert "fails" in rows[0] and "passes" in rows[1] and rows[0].count("fails") == 1
    assert f"fails: {told}" in run_page(run.summary, {}, {})


def test_a_gate_that_no_model_has_the_numbers_for_is_not_passed(tmp_path):
    run = Judged(tmp_path, "reference_kl <= 0.1", "bytes <= 60")
    assert failures(run.models) == ["no model has the numbers for reference_kl <= 0.1"] and "not measured" in run.table
    assert run.tags[None]["winnow.gates"] == "not measured" and run.tags["quantize"]["winnow.gates"] == "passes"
    assert failures(Judged(tmp_path / "more", "reference_kl <= 0.1", reference_kl=0.05).models) == []


def test_a_sweep_has_a_column_of_verdicts():
    models = [
        {
            "stage": f"prune-{number}",
            "address": f"prune/wanda-{number}",
            "bytes": number,
            "gates": [{"gate": "g", "passes": one}],
        }
        for number, one in enumerate([True, False, None] * 3)
    ]
    console = Console(file=io.StringIO(), width=100)
    console.print(models_table(models, None, 100))
    text = console.file.getvalue()
    assert text.count("passes") == text.count("fails") == text.count("not measured") == 3 and "require" in text
