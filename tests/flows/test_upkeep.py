"""``winnow verify`` finds whatever is wrong with an artifact and says how to mend it; ``winnow discard`` mends it."""

from __future__ import annotations

import io
import json

import pytest
import torch

from cluster.store.artifacts import Artifact, Record
from cluster.store.local import LocalStore
from flows.plan import make_plan
from tasks.formats.mask import Mask
from tasks.models.files.checkpoint import save_model
from tests.flows.command import winnow
from tests.flows.recipes import plan, publish, recipe
from tests.tasks import models_zoo


@pytest.fixture
def store(tmp_path, monkeypatch) -> LocalStore:
    """The store of a home of its own; prepare, pretrain, its evaluations and prune are published."""
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    store = LocalStore(tmp_path / "home" / "store")
    for step in plan(store).steps[:5]:
        publish(store, step, tmp_path / step.id, loss=1.0)
    return store


def address(store: LocalStore, id: str) -> str:
    return plan(store).by_id[id].artifact.address


def spoil(store: LocalStore, id: str, name: str = "record.json") -> str:
    """Cut off the end of one file of an artifact; its address."""
    path = store.root / address(store, id) / name
    path.write_bytes(path.read_bytes()[:-3])
    return address(store, id)


def lines(capsys, code: int, *arguments: str) -> tuple[list[str], list[str]]:
    """What a command says, out and err, after its exit code was looked at."""
    assert winnow(*arguments) == code
    told = capsys.readouterr()
    return told.out.splitlines(), told.err.splitlines()


def test_a_sound_store_has_a_line_for_every_artifact(store, capsys):
    out, err = lines(capsys, 0, "verify", "--all")
    assert err == [] and out[-1] == "5 artifacts, 0 damaged"
    assert out[:-1] == [f"{name}: 1 files as recorded" for name in store.addresses()]


def test_all_that_is_damaged_is_named_with_the_remedy_and_the_rest_is_verified(store, capsys):
    first, second = spoil(store, "prune"), spoil(store, "pretrain", "file")
    bad = {first: "record.json: not a record", second: "file: expected 8 bytes, found 5"}
    out, err = lines(capsys, 1, "verify", "--all")
    assert out[-1] == "5 artifacts, 2 damaged" and len(out) == 4
    found = dict(line.split(": ", 1) for line in err[:-1])
    assert found.keys() == bad.keys() and all(found[name].startswith(problem) for name, problem in bad.items())
    assert "winnow discard ADDRESS, then run its recipe again" in err[-1]
    out, _ = lines(capsys, 1, "verify", "--all", "--json")
    told = json.loads("\n".join(out))
    assert told["damaged"] == 2 and {row["address"] for row in told["artifacts"] if not row["sound"]} == bad.keys()
    out, err = lines(capsys, 1, "verify", next(iter(bad)))
    assert out == [] and len(err) == 2 and f"winnow discard {next(iter(bad))}, then" in err[1]


def test_the_remedy_names_the_store_that_was_asked_for(store, tmp_path, capsys):
    """Of this address the home's own store may have a sound one, and that would be gone."""
    spoiled, profile = spoil(store, "prune"), tmp_path / "else where.yaml"
    profile.write_text(f"{{store: {store.url}, scratch: {tmp_path}}}")
    _, err = lines(capsys, 2, "export", spoiled, str(tmp_path / "out"), "-p", str(profile))
    assert len(err) == 1 and err[0].endswith(f"to mend: winnow discard {spoiled} -p '{profile}', then run its recipe again")
    _, err = lines(capsys, 1, "verify", spoiled, "-p", str(profile))
    assert f"winnow discard {spoiled} -p '{profile}', then" in err[-1]
    _, err = lines(capsys, 2, "export", spoiled, str(tmp_path / "out"))
    assert err[0].endswith(f"to mend: winnow discard {spoiled}, then run its recipe again")


def test_an_edited_number_is_found(store, capsys):
    path = store.root / address(store, "prune") / "record.json"
    path.write_text(path.read_text().replace('"loss": 1.0', '"loss": 0.5'))
    _, err = lines(capsys, 1, "verify", address(store, "prune"))
    assert "record.json: not a record: something in it was changed" in err[0]


def test_verify_takes_one_address_or_all(store, capsys):
    for arguments in ((), ("prune/", "--all"), ("quantize/none",)):
        out, (line,) = lines(capsys, 2, "verify", *arguments)
        assert out == [] and ("--all" in line or "no artifact" in line)


def test_a_store_with_nothing_in_it_is_not_called_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path / "home"))
    out, err = lines(capsys, 2, "verify", "--all")
    assert not out and len(err) == 1 and "nothing is published in" in err[0]


def test_damage_is_discarded_and_the_plan_makes_it_again(store, capsys):
    bad = spoil(store, "pretrain")
    assert make_plan(recipe(), store).by_id["pretrain"].damaged
    out, err = lines(capsys, 0, "discard", bad, "--yes")
    assert out == [f"{bad} is gone"] and bad not in store.addresses() and not (store.root / bad).exists()
    assert make_plan(recipe(), store).by_id["pretrain"].reason == "never run" and store.aside() == []


def test_discard_says_what_was_made_from_it_and_asks(store, capsys, monkeypatch):
    prepared = address(store, "prepare")
    children = sorted(name for name in store.addresses() if name != prepared)
    for answer, code in (("n\n", 1), ("\n", 1), ("", 2), ("y\n", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert prepared in store.addresses()
        _, err = lines(capsys, code, "discard", prepared)
        assert err[0] == f"made from it, and kept: {', '.join(children)}" and "for good? [y/N]" in err[1]
        assert ("give --yes" in err[-1]) == (answer == "") and "give --yes" not in err[1]
    assert store.addresses() == children


@pytest.mark.parametrize("nonsense", ["prune/wanda-000000000000", "prune/", "wanda", "../../etc", "", ".quarantine"])
def test_discard_refuses_what_is_no_whole_address(store, capsys, nonsense):
    before = store.addresses()
    out, (line,) = lines(capsys, 2, "discard", nonsense, "--yes")
    assert out == [] and store.addresses() == before
    assert "no artifact" in line or "ambiguous" in line or "takes a whole address" in line


def kept(store: LocalStore, tmp_path, change) -> Record:
    """A model that was broken by ``change`` before it was published; its record and hashes are right."""
    model = models_zoo.model("llama", layers=1)
    state, masks = dict(model.state_dict()), {}
    change(state, masks)
    save_model(state, model.config, tmp_path / "model", masks)
    return store.publish(Artifact("prune", 1, "wanda", {}, {}), tmp_path / "model", {}, 1.0, {}, {})


WEIGHT = "model.layers.0.mlp.up_proj.weight"


def lose_a_weight(state, masks) -> None:
    del state[WEIGHT]


def reshape_a_weight(state, masks) -> None:
    state[WEIGHT] = state[WEIGHT][:-1].clone()


def break_a_mask(state, masks) -> None:
    masks[WEIGHT] = Mask.of(torch.rand(state[WEIGHT].shape) > 0.5, "unstructured", 0.5)


@pytest.mark.parametrize("change", [lose_a_weight, reshape_a_weight, break_a_mask])
def test_a_model_that_was_broken_when_it_was_published_is_found(store, tmp_path, capsys, change):
    record = kept(store, tmp_path, change)
    out, err = lines(capsys, 1, "verify", record.address)
    told = [line for line in err if line.startswith(record.address)]
    assert out == [] and f"{record.address}: every byte is as it was published, but the model is broken: " in told[0]
    assert f"winnow discard {record.address}" in err[-1]


def test_what_an_older_winnow_made_is_said_and_is_no_damage(store, capsys, monkeypatch):
    path = store.root / address(store, "prune") / "record.json"
    fields = json.loads(path.read_text())
    del fields["digest"]
    path.write_text(json.dumps(fields))
    out, err = lines(capsys, 0, "verify", "prune/")
    assert out == [f"{address(store, 'prune')}: 1 files as recorded"] and "carries no digest" in err[0]
    monkeypatch.setattr("tasks.pretrain.Pretrain.version", 99)
    _, (note,) = lines(capsys, 0, "verify", "pretrain/")
    assert "of pretrain; this Winnow has version 99 and does not reuse it" in note
