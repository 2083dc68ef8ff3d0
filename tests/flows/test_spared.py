"""A soup whose member cannot be made is made of the others, under a key of its own, and says who is lost."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from cluster.store.artifacts import CorruptArtifact
from cluster.store.local import LocalStore
from flows.conductor import StageFailed
from flows.launch import launch
from flows.plan import make_plan
from flows.spared import Spared, of_what_is_left
from tests.flows.recipes import BASE, plan, recipe

MEMBERS = {"id": "members", "recover": {"tokens": 10_000}, "grid": {"seed": [0, 1, 2]}}
LATER = {"id": "later", "recover": {"tokens": 5_000}}
SOUP = {"id": "soup", "merge": {}, "gather": True}
SHORT = {"tokens": 512, "length": 16, "batch": 4}
NAN = FloatingPointError("the gradient norm is nan at step 1")


@pytest.fixture
def spared(tmp_path):
    """A round of a plan whose members go through two stages each; it tells nobody."""
    made = plan(LocalStore(tmp_path), *BASE["stages"][:3], MEMBERS, LATER, SOUP, {"quantize": {"method": {"gptq": {}}}})
    return Spared(made, SimpleNamespace(failed=lambda step, error: None))


def lost(spared: Spared) -> set[str]:
    return {step.node.base for step in spared.plan.steps if not step.node.measures and spared.lost(step)}


def fail(spared: Spared, *ids: str, error: Exception = NAN) -> None:
    for id in ids:
        spared.failed(spared.plan.by_id[id], error)


def test_what_feeds_one_member_alone_is_spared_and_the_soup_waits_for_another_round(spared):
    assert spared.plan.on_members == {f"{base}-seed{seed}" for base in ("members", "later") for seed in range(3)}
    fail(spared, "members-seed1")
    assert lost(spared) == {"members", "later", "soup", "quantize"} and spared.waiting == ["soup"]
    assert not spared.lost(spared.plan.by_id["later-seed0"]) and spared.lost(spared.plan.by_id["members-seed1.size"])


@pytest.mark.parametrize(
    ("id", "error"),
    [
        ("prune", NAN),  # which all members come from
        ("quantize", NAN),
        ("members-seed1.size", NAN),
        ("members-seed1", OSError("no space left on device")),
        ("members-seed1", CorruptArtifact("members: its bytes are not those that were written")),
        ("members-seed1", StageFailed("members-seed1: its input is damaged", aside="prune/wanda-0")),
        ("members-seed1", StageFailed("members-seed1: Ray at 10.0.0.1 is away", shared=True)),
    ],
)
def test_what_is_everybodys_ends_the_run(spared, id, error):
    with pytest.raises(type(error), match=str(error)):
        fail(spared, id, error=error)


def test_a_soup_of_one_is_none_and_says_so_in_one_line(spared):
    fail(spared, "members-seed0", "later-seed2", error=RuntimeError("it broke\nat a line"))
    with pytest.raises(
        StageFailed,
        match=r"^soup: 1 of 3 members left, and a merge takes 2 or more; without later-seed0 \(it broke at a line\); later-s",
    ) as refused:
        lost(spared)
    assert refused.value.final and "\n" not in str(refused.value)


def test_the_plan_without_a_member_is_that_of_a_recipe_that_never_had_it(tmp_path):
    stages = [*BASE["stages"][:3], MEMBERS, SOUP, LATER]
    evaluate = {"divergence": {"reference": "parent"}}
    three, two = (
        recipe(*stages[:3], {**MEMBERS, "grid": {"seed": seeds}}, *stages[4:], evaluate=evaluate)
        for seeds in ([0, 1, 2], [1, 2])
    )
    fewer, lines = of_what_is_left(three, {"members-seed0": NAN})
    assert lines == {"soup": f"goes on with 2 of its 3 members, without members-seed0 ({NAN})"}
    store = LocalStore(tmp_path)
    found, wanted = (make_plan(one, store).by_id for one in (fewer, two))
    for id in wanted.keys() - {"members-seed0"}:  # the soup's reference is its first member, which is another one
        assert found[id].artifact == wanted[id].artifact, id
    assert of_what_is_left(three, {"prune": NAN}) == (three, {}), "nothing is left of it"


SEARCHED = {"id": "members", "recover": {"tokens": 10_000}, "search": {"learning_rate": [1e-3, 2e-3, 3e-3]}}
DRAWN = {"trials": [{"members.learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)]}


def test_a_soup_of_trials_goes_on_without_one_that_failed(tmp_path):
    gathered = recipe(*BASE["stages"][:3], SEARCHED, {**SOUP, "gather": ["trial"]}, search=DRAWN, evaluate={"perplexity": {}})
    fewer, lines = of_what_is_left(gathered, {"members-trial1": NAN})
    assert lines.keys() == {"soup"}
    assert list(fewer.node("soup").parents.values()) == ["members-trial0", "members-trial2"]


def test_a_trial_that_lacks_a_member_of_its_own_soup_is_lost_whole(tmp_path):
    stages = [*BASE["stages"][:3], {**SEARCHED, "grid": {"seed": [0, 1, 2]}}, {**SOUP, "gather": ["seed"]}]
    made = plan(LocalStore(tmp_path), *stages, search=DRAWN, evaluate={"perplexity": {}})
    spared = Spared(made, SimpleNamespace(failed=lambda step, error: None))
    fail(spared, "members-trial1-seed0")
    assert spared.lost(made.by_id["soup-trial1"]) and not spared.lost(made.by_id["soup-trial0"]) and spared.waiting == []
    assert of_what_is_left(made.recipe, {"members-trial1-seed0": NAN}) == (made.recipe, {})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a soup of members with these learning rates, and one more training from it, in this process: what came out, and what
    was told."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(**rates: float) -> tuple[dict[str, Any], str]:
        grid = {"case": {name: {"learning_rate": rate} for name, rate in rates.items()}}
        stages = [
            {"prepare": {"corpus": {"stdlib": {"only": ["email"]}}, "tokenizer": {"train": 300}}},
            {"pretrain": {"method": "dense", **SHORT}},
            {"prune": {"method": "magnitude", "pattern": "2:4", "sequences": 8, "length": 16}},
            {"id": "members", "recover": {**SHORT}, "grid": grid},
            {"id": "soup", "merge": {"method": {"greedy": {"sequences": 8, "length": 16}}}, "gather": True},
            {"id": "later", "recover": {**SHORT}},
        ]
        evaluate = {name: {"length": 16, "tokens": 256} for name in ("perplexity", "divergence")}
        evaluate["divergence"]["reference"] = "parent"
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**BASE, "stages": stages, "evaluate": evaluate}))
        console = Console(file=StringIO(), width=300)
        return launch(str(path), "local", console, quiet=False, here=True)[1], console.file.getvalue()

    return run


def test_a_member_that_diverges_costs_a_soup_that_member(run):
    summary, told = run(wild=1e6, slow=1e-3, fast=4e-3)
    stages = {stage["id"]: stage for stage in summary["stages"]}
    assert summary["failed"].keys() == {"members-wild"}
    assert {id for id, stage in stages.items() if not stage["done"]} == {
        "members-wild",
        "members-wild.perplexity",
        "members-wild.divergence",
    }
    assert told.count("soup: goes on with 2 of its 3 members, without members-wild (the ") == 1
    assert stages["soup"]["metrics"]["merged_models"] <= 2 and "reference_kl" in stages["soup.divergence"]["metrics"]
    again, _ = run(slow=1e-3, fast=4e-3)
    assert again["failed"] == {} and all(stage["cached"] for stage in again["stages"]), "its keys are those without the member"


def test_a_soup_with_one_member_left_fails(run):
    told = r"^soup: 1 of 2 members left, and a merge takes 2 or more; without members-wild \(the "
    with pytest.raises(StageFailed, match=told):
        run(slow=1e-3, wild=1e6)
