"""``winnow gc`` shows what nothing needs and removes it when told to: by a real MLflow, and a store with artifacts in it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.profile import load_profile
from cluster.runs import Runs, needing
from cluster.store.local import LocalStore
from cluster.store.owners import owned
from flows.chronicle import Chronicle
from flows.plan import Plan
from tests.flows.command import winnow
from tests.flows.recipes import BASE, plan, publish, recipe

pytestmark = pytest.mark.slow  # MLflow makes its tables
STAGES = BASE["stages"]
OTHER = [*STAGES[:2], {"prune": {"method": "magnitude", "pattern": "2:4"}}]


class House:
    """A home with a store, and an MLflow that was told of two runs: they share all but their last stage."""

    def __init__(self, home: Path) -> None:
        self.home, self.store = home, LocalStore(home / "store")
        self.client = MlflowClient(f"sqlite:///{home}/mlflow.db")
        self.runs = [self.run(*stages, name=name) for stages, name in ((STAGES[:3], "one"), (OTHER, "two"))]

    def run(self, *stages: dict, name: str) -> tuple[Plan, str]:
        made = plan(self.store, *stages, evaluate=["size"], name=name)
        chronicle = Chronicle.open(made, self.store, load_profile("local"), {})
        for step in made.steps:
            publish(self.store, step, self.home / "out" / step.artifact.key)
        chronicle.tracking.end(None, "FINISHED")
        return made, chronicle.tracking.parent

    def only(self, number: int) -> set[str]:
        """Addresses that one of the two runs stands on and the other does not."""
        mine, others = ({step.artifact.address for step in self.runs[which][0].steps} for which in (number, 1 - number))
        return mine - others

    def text(self, number: int) -> str:
        return self.runs[number][0].recipe.text


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """MLflow's tables are made once."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("gc")
        patch.setenv("WINNOW_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield House(home)


@pytest.fixture
def house(used):
    """Nothing that another test removed, deleted or pinned."""
    for made, run in used.runs:
        used.client.restore_run(run)
        for step in made.steps:
            publish(used.store, step, used.home / "out" / step.artifact.key)
    for address in used.store.pins():
        used.store.unpin(address)
    return used


def told(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert winnow("gc", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def places(found: dict, which: str = "unneeded") -> set[str]:
    return {item["place"] for item in found[which]}


def test_what_a_listed_run_stands_on_is_needed_and_what_only_a_deleted_one_did_is_not(house, capsys):
    assert told(capsys, "--yes") | {"store": ""} == {
        "store": "",
        "needed": {"artifacts": 7, "bytes": sum(record.files["file"]["bytes"] for record in house.store.records())},
        "unneeded": [],
        "strange": [],
        "bytes": 0,
        "removed": True,
    }
    house.client.delete_run(house.runs[1][1])
    found = told(capsys)
    assert places(found) == house.only(1) and not found["removed"] and len(house.store.addresses()) == 7
    assert places(told(capsys, "--yes")) == house.only(1) and len(house.store.addresses()) == 5
    assert told(capsys, "--yes")["unneeded"] == []


def test_a_pin_a_named_recipe_and_a_registered_model_keep_what_they_were_made_from(house, capsys):
    for _, run in house.runs:
        house.client.delete_run(run)
    pruned = house.runs[0][0].by_id["prune"].artifact.address
    everything = set(house.store.addresses())
    assert places(told(capsys)) == everything
    assert winnow("pin", pruned) == 0
    line = {house.runs[0][0].by_id[id].artifact.address for id in ("prepare", "pretrain", "prune")}
    assert places(told(capsys)) == everything - line
    capsys.readouterr()
    for nothing in ("", "other"):  # as of a variable that is empty: the one pin that there is was not meant
        assert winnow("unpin", nothing) == 2
        assert f"no pin begins with {nothing!r}; choose one of {pruned}" in " ".join(capsys.readouterr().err.split())
    assert winnow("unpin", pruned[:12]) == 0
    assert winnow("unpin", pruned[:12]) == 2 and "nothing is pinned" in capsys.readouterr().err
    assert places(told(capsys, house.text(1))) == house.only(0)
    house.client.create_registered_model("best")
    version = house.client.create_model_version("best", "file:///none", run_id=house.runs[0][1]).version
    assert places(told(capsys)) == house.only(1)
    house.client.delete_model_version("best", version)
    house.client.delete_registered_model("best")
    assert places(told(capsys)) == everything


def test_what_no_run_here_ever_named_is_others_and_stays(house, capsys):
    strange = plan(house.store, *STAGES[:1], seed=7).steps[0]
    publish(house.store, strange, house.home / "strange")
    found = told(capsys, "--yes")
    assert places(found, "strange") == {strange.artifact.address} and found["unneeded"] == []
    assert places(told(capsys, "--yes", "--strangers")) == {strange.artifact.address}
    assert strange.artifact.address not in house.store.addresses()


def test_scratch_that_a_run_may_resume_from_or_a_job_is_in_stays(house, capsys):
    missing = plan(house.store, *STAGES[:2], evaluate=["size"], name="one", seed=3).by_id["pretrain"].artifact
    folder = house.home / "scratch" / missing.address
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "state").write_bytes(bytes(100))
    experiment = house.client.get_experiment_by_name("winnow").experiment_id
    run = house.client.create_run(experiment, tags=needing([missing.key, house.runs[1][0].by_id["prune"].artifact.key]))
    assert told(capsys)["unneeded"] == []
    house.client.delete_run(run.info.run_id)
    house.client.delete_run(house.runs[1][1])
    with owned(folder):  # a job that goes on though its run was deleted: what it reads stays as well
        assert house.only(1) & places(told(capsys)) == {house.runs[1][0].by_id["prune.size"].artifact.address}
    assert places(told(capsys, "--yes")) == house.only(1) | {str(folder)} and not folder.exists()


def test_without_a_terminal_it_only_looks_and_on_one_it_asks(house, capsys, monkeypatch):
    house.client.delete_run(house.runs[1][1])
    assert winnow("gc") == 0
    assert "nothing was removed; the same command with --yes removes it" in capsys.readouterr().out
    asked = io.StringIO("n\ny\n")
    asked.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", asked)
    assert winnow("gc") == 0 and len(house.store.addresses()) == 7
    assert "remove 2 things" in capsys.readouterr().err
    assert winnow("gc") == 0 and len(house.store.addresses()) == 5


def test_leftovers_and_what_is_kept_aside_go_with_it(house, capsys):
    address = house.runs[0][0].by_id["prune"].artifact.address
    (house.store.root / address / "file").write_text("spoiled")
    assert house.store.quarantine(address)
    left = house.home / "scratch" / house.runs[0][0].by_id["pretrain"].artifact.address
    left.mkdir(parents=True)
    with owned(left):
        (left / "model").write_bytes(bytes(50))
    found = told(capsys, "--yes")
    assert {item["kind"] for item in found["unneeded"]} == {"aside", "leftover"}
    assert house.store.aside() == [] and not left.exists()


def test_more_keys_than_a_tag_has_room_for_are_kept_all_the_same():
    keys = [f"{number:064x}"[::-1] for number in range(1500)]
    tags = needing(keys)
    assert len(tags) == 3 and all(len(value) <= 8000 for value in tags.values())
    assert {key for value in tags.values() for key in value.split()} == {key[:12] for key in keys}


def test_the_recipe_of_a_run_is_found_by_its_name_or_id(house):
    runs = Runs(f"sqlite:///{house.home}/mlflow.db")
    found = runs.find("one")
    assert found.info.run_id == house.runs[0][1] == runs.find(found.info.run_id).info.run_id
    assert runs.recipe(found) == house.text(0) and recipe(name="one").name == "one"
    with pytest.raises(ValueError, match="no run 'three' in MLflow .* or its name: "):
        runs.find("three")
