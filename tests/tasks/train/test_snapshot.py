"""A run that goes on from a snapshot is the run that was never interrupted; a damaged snapshot is never used."""

from __future__ import annotations

import json
import random
import time

import pytest
import torch
from torch import nn

from tasks.context import CHECKPOINTS
from tasks.train.attempts import Fenced, next_attempt, register_attempt
from tasks.train.engine import TorchEngine, adamw
from tasks.train.snapshot import latest, restore, save

WEIGHT = "0.weight"


def engine_of(seed: int = 0) -> TorchEngine:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.1), nn.Linear(16, 4))
    return TorchEngine(module, adamw(module), 1.0)


def train(engine: TorchEngine, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)  # as the loop does, for dropout
        batch = torch.randn(32, 8)
        engine.backward(engine.forward(batch).square().mean())
        engine.step(1e-2)


def weights(engine: TorchEngine) -> dict[str, torch.Tensor]:
    return {name: engine.read(name) for name, _ in engine.shards()}


def test_five_steps_a_restart_and_five_more_are_ten_steps_bit_for_bit(tmp_path):
    keep = torch.rand(16, 8) < 0.5
    whole, first = engine_of(), engine_of()
    whole.hold(WEIGHT, keep)
    train(whole, range(10))

    first.hold(WEIGHT, keep)
    train(first, range(5))
    save(first, tmp_path, 5, {"cursor": 5, "hooks": [{"seen": 0.25}]}, {"keep": keep, "score": torch.arange(3.0)})

    second = engine_of(seed=9)
    step, state, tensors = restore(latest(tmp_path), second)
    assert (step, state) == (5, {"cursor": 5, "hooks": [{"seen": 0.25}]})
    assert torch.equal(tensors["keep"], keep) and torch.equal(tensors["score"], torch.arange(3.0))
    second.hold(WEIGHT, tensors["keep"])
    train(second, range(step, 10))
    for name, weight in weights(whole).items():
        assert torch.equal(weights(second)[name], weight)
    for (_, one), (_, other) in zip(whole.shards(), second.shards(), strict=True):
        assert all(torch.equal(one.moments[moment], other.moments[moment]) for moment in one.moments)


def test_masks_cost_a_bit_per_weight_and_nothing_is_a_pickle(tmp_path):
    path = save(engine_of(), tmp_path, 1, {}, {"keep": torch.ones(1000, 1000, dtype=torch.bool)})
    assert (path / "tensors.safetensors").stat().st_size < 1_000_000 / 8 + 1000
    names = {"rank-0.safetensors", "tensors.safetensors", "state.json", "manifest.json"}
    assert {file.name for file in path.iterdir()} == names


def test_where_nothing_was_saved_there_is_nothing_to_go_on_from(tmp_path):
    assert latest(tmp_path) is None and latest(tmp_path / "absent") is None


def test_the_newest_two_are_kept(tmp_path):
    engine = engine_of()
    for step in (1, 2, 3, 10):
        save(engine, tmp_path, step, {}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000010"]


def damaged(path, how: str, seed: int) -> str:
    """Damage one byte of a random file of the snapshot (or cut the file there); its name."""
    draw = random.Random(seed)
    file = draw.choice(sorted(path.iterdir()))
    content = bytearray(file.read_bytes())
    offset = draw.randrange(len(content))
    if how == "flip":
        content[offset] ^= 1 << draw.randrange(8)
    else:
        del content[offset:]
    file.write_bytes(content)
    return file.name


@pytest.mark.parametrize(("how", "count"), [("flip", 300), ("truncate", 100)])
def test_a_damaged_snapshot_is_set_aside_and_the_one_before_it_taken(tmp_path, caplog, how, count):
    engine = engine_of()
    for seed in range(count):
        directory = tmp_path / str(seed)
        save(engine, directory, 1, {"cursor": 1}, {})
        save(engine, directory, 2, {"cursor": 2}, {"keep": torch.ones(9, dtype=torch.bool)})
        name = damaged(directory / "step-00000002", how, seed)
        assert latest(directory).step == 1, (seed, name)
        assert (directory / "step-00000002.corrupt").exists()
    assert len(caplog.records) == count and "going back to an older one" in caplog.text
    assert restore(latest(directory), engine)[1] == {"cursor": 1}


def test_when_every_snapshot_is_damaged_none_is_used(tmp_path):
    save(engine_of(), tmp_path, 1, {}, {})
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    assert latest(tmp_path) is None


def test_a_save_that_was_killed_is_invisible_and_cleared_away(tmp_path):
    engine = engine_of()
    save(engine, tmp_path, 1, {}, {})
    half_done = tmp_path / ".partial-00000002-0"
    half_done.mkdir()
    (half_done / "rank-0.safetensors").write_bytes(b"half")
    assert latest(tmp_path).step == 1
    save(engine, tmp_path, 2, {}, {})
    assert not half_done.exists() and latest(tmp_path).step == 2


def test_a_full_disk_is_told_with_path_and_bytes_and_the_previous_snapshot_stays(tmp_path, monkeypatch):
    engine = engine_of()
    save(engine, tmp_path, 1, {}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*rank-0\.safetensors \(\d+ bytes\).*No space left"):
        save(engine, tmp_path, 2, {}, {})
    assert latest(tmp_path).step == 1


def test_a_step_that_is_saved_already_is_left_alone(tmp_path):
    engine = engine_of()
    save(engine, tmp_path, 1, {"cursor": 1}, {})
    save(engine, tmp_path, 1, {"cursor": 999}, {})
    assert restore(latest(tmp_path), engine)[1] == {"cursor": 1}


def test_a_leftover_of_an_older_attempt_cannot_save(tmp_path):
    engine = engine_of()
    register_attempt(tmp_path, attempt=1)
    save(engine, tmp_path, 1, {}, {}, attempt=1)
    register_attempt(tmp_path, attempt=2)
    with pytest.raises(Fenced, match="belongs to attempt 2; attempt 1 is a leftover"):
        save(engine, tmp_path, 2, {}, {}, attempt=1)
    with pytest.raises(Fenced):
        register_attempt(tmp_path, attempt=1)
    save(engine, tmp_path, 3, {}, {}, attempt=2)
    assert latest(tmp_path).step == 3


def test_an_attempt_that_begins_later_owns_the_directory_whatever_its_clock_says(tmp_path):
    """A clock that was a year ahead, then set right, made a leftover of every attempt for a year."""
    assert 0 < next_attempt(tmp_path) <= time.time_ns()
    ahead = time.time_ns() + 365 * 86_400 * 10**9
    register_attempt(tmp_path / CHECKPOINTS, ahead)
    save(engine_of(), tmp_path / CHECKPOINTS, 1, {}, {}, attempt=ahead)
    again = next_attempt(tmp_path)
    register_attempt(tmp_path / CHECKPOINTS, again)
    save(engine_of(), tmp_path / CHECKPOINTS, 2, {}, {}, attempt=again)
    assert latest(tmp_path / CHECKPOINTS).step == 2
    with pytest.raises(Fenced):
        save(engine_of(), tmp_path / CHECKPOINTS, 3, {}, {}, attempt=ahead)


def test_an_attempt_that_loses_the_directory_while_writing_does_not_publish(tmp_path, monkeypatch):
    from tasks.train import sealed

    register_attempt(tmp_path, attempt=1)
    seal = sealed.seal
    monkeypatch.setattr(sealed, "seal", lambda *given: (seal(*given), register_attempt(tmp_path, attempt=2)))
    with pytest.raises(Fenced):
        save(engine_of(), tmp_path, 1, {}, {}, attempt=1)
    assert latest(tmp_path) is None


def test_state_that_json_cannot_carry_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save(engine_of(), tmp_path, 1, {"loss": float("nan")}, {})
    assert latest(tmp_path) is None


def test_another_model_is_refused(tmp_path):
    save(engine_of(), tmp_path, 1, {}, {})
    module = nn.Sequential(nn.Linear(8, 17), nn.Dropout(0.1), nn.Linear(17, 4))
    with pytest.raises(RuntimeError, match="size"):
        restore(latest(tmp_path), TorchEngine(module, adamw(module)))


def test_the_manifest_tells_what_is_inside(tmp_path):
    path = save(engine_of(), tmp_path, 7, {}, {})
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert (manifest["step"], manifest["ranks"]) == (7, 1)
    assert all(file["bytes"] == (path / name).stat().st_size for name, file in manifest["files"].items())
