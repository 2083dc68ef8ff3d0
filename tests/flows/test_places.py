"""A local path means one place: it is resolved once, and what lies there is compared again where it is read."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.profile import load_profile
from cluster.ray.events import Event, Failed
from cluster.store.files import RECORD_NAME
from cluster.store.url import open_store
from flows.options import settle_environment
from flows.plan import Plan, Step, prepare
from flows.submit import Submitter
from tasks.data.tokenizer import train_tokenizer
from tasks.job import produce
from tasks.models.facts import Parties
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

FILES = {"files": {"paths": ["texts/*.txt"]}}
TEXT = {"prepare": {"corpus": FILES, "tokenizer": {"train": 300}}}
LEARNT = {"prepare": {**TEXT["prepare"], "tokenizer": {"checkpoint": "model"}}}
PRUNE = {"prune": {"method": "magnitude", "sparsity": 0.5, "length": 16, "sequences": 2}}
TUNE = {"recover": {"tokens": 512, "length": 16, "batch": 2, "method": {"masked": {"kl": 1.0}}}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, which commands are run in."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    made = tmp_path / "user"
    data_zoo.write_texts(made / "texts", 40)
    monkeypatch.chdir(made)
    return made


def plan(folder: Path, *stages: dict[str, Any], **header: Any) -> Plan:
    document = {"name": "places", "stages": list(stages), **header}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    return prepare(str(folder / "recipe.yaml"), load_profile("local"))[0]


def make(step: Step) -> dict[str, Any]:
    """Make a step's artifact as a job would, which is told no more than its payload; the artifact's files by name."""
    where = load_profile("local")
    produce(json.loads(json.dumps(Submitter(where).payload(step))), lambda event: None)
    store = open_store(where.store, Path(where.scratch) / "cache")
    directory = store.fetch(store.require(step.artifact))
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.is_file() and file.name != RECORD_NAME}


def test_a_relative_path_is_read_where_the_command_was_run_and_not_where_the_job_runs(folder, tmp_path, monkeypatch):
    step = plan(folder, TEXT).by_id["prepare"]
    data_zoo.write_texts(tmp_path / "elsewhere" / "texts", 40)
    for file in (tmp_path / "elsewhere" / "texts").iterdir():
        file.write_text(file.read_text().replace("wheat", "barley"))
    monkeypatch.chdir(tmp_path / "elsewhere")  # another file of the same relative path
    made = make(step)
    assert b"wheat" in made["heldout.jsonl"] and b"barley" not in made["heldout.jsonl"]


def test_where_a_folder_lies_is_no_part_of_a_relative_paths_key_and_changes_no_result(folder, tmp_path, monkeypatch):
    zoo.save("llama", folder / "model", vocab_size=300)
    stages, model = (TEXT, PRUNE), {"checkpoint": "model"}
    before = plan(folder, *stages, model=model)
    made = make(before.by_id["prepare"])
    moved = Path(shutil.move(folder, tmp_path / "moved" / "user"))
    monkeypatch.chdir(moved)
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "another"))
    after = plan(moved, *stages, model=model)
    assert [step.artifact.key for step in after.steps] == [step.artifact.key for step in before.steps]
    assert make(after.by_id["prepare"]) == made


def test_a_path_below_the_users_home_is_that_of_who_gave_it(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    zoo.save("llama", folder / "model", vocab_size=300)
    source = plan(folder, TEXT, PRUNE, model={"checkpoint": "~/model"}).recipe.node("prune").stage.model
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source.checkpoint.local == folder / "model"


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        (TEXT, "stages[0].prepare.corpus"),
        ({"prepare": {**TEXT["prepare"], "corpus": {"sequence": {name: copy.deepcopy(FILES) for name in "ab"}}}}, "corpus"),
        ({"prepare": {"corpus": "stdlib", "tokenizer": {"checkpoint": "model"}}}, "prepare.tokenizer.checkpoint.path"),
    ],
)
def test_a_recipe_that_comes_as_text_or_through_a_server_names_absolute_paths(stage, field, folder):
    text = yaml.safe_dump({"name": "places", "stages": [stage]})
    (folder / "recipe.yaml").write_text(text)
    for recipe, served in ((text, False), (text, True), (str(folder / "recipe.yaml"), True)):
        with pytest.raises(ValueError, match="is relative, and a recipe that comes as text or through a server") as refused:
            prepare(recipe, load_profile("local"), served)
        assert field in str(refused.value) and "\n" not in str(refused.value)


def test_branches_on_one_checkpoint_read_its_weights_once(folder, monkeypatch):
    zoo.save("llama", folder / "model", vocab_size=300)
    read, real = [], hashlib.file_digest
    monkeypatch.setattr("tasks.data.digests.SETTLED", -1)  # as if the files had lain there for a while
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: read.append(Path(file.name).name) or real(file, name))
    branches = [{**copy.deepcopy(PRUNE), "id": f"branch{number}", "from": "prepare"} for number in range(4)]
    made = plan(folder, TEXT, *branches, model={"checkpoint": "model"})
    assert len({step.artifact.params["fingerprints"]["model"] for step in made.steps[1:]}) == 1
    assert read.count("model.safetensors") == 1


def spoil(kind: str, folder: Path) -> None:
    if kind == "corpus":
        (folder / "texts" / "007.txt").write_text("changed")
    else:
        zoo.save("llama", folder / kind, num_attention_heads=2, vocab_size=300)


@pytest.mark.parametrize(
    ("kind", "stages", "id"),
    [
        ("corpus", (TEXT,), "prepare"),
        ("tokenizer", (LEARNT,), "prepare"),
        ("model", (TEXT, PRUNE), "prune"),
        ("teacher", (TEXT, PRUNE, {"recover": {**TUNE["recover"], "teacher": {"checkpoint": "teacher"}}}), "recover"),
    ],
)
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_what_changed_after_the_plan_fails_the_stage_in_one_line_and_publishes_nothing(
    kind, stages, id, moment, folder, monkeypatch
):
    for name in ("model", "teacher"):
        zoo.save("llama", folder / name, vocab_size=300)
    train_tokenizer([data_zoo.text(0)], 300).save_pretrained(folder / "model")
    made = plan(folder, *stages, **({} if len(stages) == 1 else {"model": {"checkpoint": "model"}}))
    step, stage = made.by_id[id], made.by_id[id].node.stage
    monkeypatch.setattr("cluster.store.local.LocalStore.fetch", lambda *given: folder)  # no matter what parents would hold
    monkeypatch.setattr(type(stage), "parties", lambda *given: Parties())
    monkeypatch.setattr(type(stage), "run", lambda *given: spoil(changed, folder) or {} if moment == "meanwhile" else {})
    changed = "model" if kind == "tokenizer" else kind
    if moment == "before":
        spoil(changed, folder)
    events: list[Event] = []
    with pytest.raises(ValueError, match=f"^{kind} .* is not what it was when this run was planned") as refused:
        produce(Submitter(load_profile("local")).payload(step), events.append)
    assert "\n" not in str(refused.value) and isinstance(events[-1], Failed) and events[-1].final
    assert open_store(load_profile("local").store, folder).record(step.artifact) is None


def test_relative_paths_in_the_environment_mean_the_same_to_servers_and_jobs(folder, monkeypatch):
    given = {"WINNOW_HOME": "mine", "HF_HOME": "~/hub", "AWS_CA_BUNDLE": "/etc/ca.pem", "HF_HUB_OFFLINE": "1"}
    for name, value in {**given, "HOME": str(folder)}.items():
        monkeypatch.setenv(name, value)
    settle_environment()
    assert {name: os.environ[name] for name in given} == {
        **given,
        "WINNOW_HOME": str(folder / "mine"),
        "HF_HOME": str(folder / "hub"),
    }
