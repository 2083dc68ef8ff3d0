"""MLflow gets one run per stage: what is measured of a model stands in the model's run, whichever evaluator measured it."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest

from cluster.store.local import LocalStore
from flows.chronicle import Chronicle
from flows.summary import summarise
from tests.flows.recipes import BASE, plan, publish


class Ledger:
    """Tracking that keeps what it is told, by run."""

    def __init__(self) -> None:
        self.origins = SimpleNamespace(run=lambda key, evaluations: None)
        self.children, self.tags, self.numbers, self.ended = {}, defaultdict(dict), defaultdict(dict), {}
        self.drawn = defaultdict(list)

    def child(self, id, tags, params):
        self.children[id], self.tags[id] = id, dict(tags)

    def tag(self, id, name, value):
        assert id is None or id in self.children
        self.tags[id][name] = value

    def scalars(self, id, metrics, prefix=""):
        self.numbers[id] |= {prefix + name: value for name, value in metrics.items()}

    def figures(self, id, figures):
        self.drawn[id] += [(name, figure.axes[0].get_title()) for name, figure in figures]

    def end(self, id, status):
        self.ended[id] = status

    def __getattr__(self, name):
        return lambda *given: None


@pytest.fixture
def told(tmp_path):
    """A run that made all but one evaluation, as a ledger tells it."""
    made = plan(LocalStore(tmp_path / "store"), *BASE["stages"][:3], evaluate=["size", "pattern", "divergence"])
    chronicle = Chronicle(made, LocalStore(tmp_path / "store"), Ledger())
    for number, step in enumerate(made.steps):
        chronicle.started(step)
        if step.id != "prune.divergence":
            record = publish(chronicle.store, step, tmp_path / step.id, **{f"number{number}": float(number)})
            chronicle.finished(step, record, 0.0)
    summary = summarise(made, chronicle.records, {}, 0.0)
    chronicle.close(summary, "FAILED")
    return made, chronicle.tracking


def test_a_run_for_every_stage_and_none_for_an_evaluation(told):
    made, ledger = told
    assert list(ledger.children) == ["prepare", "pretrain", "prune"]
    assert ledger.numbers["pretrain"].keys() >= {"number1", "number2", "number3"}
    assert ledger.numbers[None].keys() >= {"prepare/number0", "pretrain/number1", "pretrain/number2", "prune/number4"}
    tags = {name: made.by_id[f"prune.{name}"].artifact.address for name in ("size", "pattern", "divergence")}
    assert {f"winnow.evaluate.{name}": address for name, address in tags.items()}.items() <= ledger.tags["prune"].items()
    assert ledger.tags["prune"]["winnow.evaluate.divergence.reference"] == made.by_id["pretrain"].artifact.address


def test_the_run_of_a_model_that_lacks_an_evaluation_says_how_the_flow_ended(told):
    assert told[1].ended == {"prepare": "FINISHED", "pretrain": "FINISHED", "prune": "FAILED", None: "FAILED"}


def test_an_evaluation_that_is_there_opens_the_run_of_a_model_that_is_made_again(tmp_path):
    made = plan(LocalStore(tmp_path / "store"), *BASE["stages"][:2], evaluate=["size"])
    chronicle = Chronicle(made, LocalStore(tmp_path / "store"), Ledger())
    for id in ("pretrain.size", "prepare", "pretrain"):  # a run tells first what is there already
        chronicle.started(made.by_id[id])
        chronicle.finished(made.by_id[id], publish(chronicle.store, made.by_id[id], tmp_path / id, found=1.0), 0.0)
    assert set(chronicle.tracking.children) == {"prepare", "pretrain"}
    assert chronicle.tracking.tags["pretrain"].keys() >= {"winnow.address", "winnow.evaluate.size"}


def test_a_map_of_a_model_is_drawn_in_the_models_run(tmp_path):
    made = plan(LocalStore(tmp_path / "store"), *BASE["stages"][:2], evaluate=["atlas"])
    chronicle = Chronicle(made, LocalStore(tmp_path / "store"), Ledger())
    rows = ["matrix,zeros,effective_rank", "h.0.up.weight,0.5,0.9", "h.1.up.weight,0.25,0.8", "h.1.experts.up[3],1,0"]
    (tmp_path / "pretrain.atlas" / "report").mkdir(parents=True)
    (tmp_path / "pretrain.atlas" / "report" / "atlas.csv").write_text("\n".join(rows) + "\n")
    for step in made.steps:
        chronicle.started(step)
        chronicle.finished(step, publish(chronicle.store, step, tmp_path / step.id), 0.0)
    titles = [("zeros_by_layer", "pretrain: zeros (%)"), ("effective_rank_by_layer", "pretrain: effective rank (%)")]
    assert chronicle.tracking.drawn["pretrain"] == titles
