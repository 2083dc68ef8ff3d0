"""Kill -9 in the middle of a SparseGPT walk: it goes on at the next block, and the same bits come out."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tasks.calibrate.method import Pruner
from tasks.calibrate.walk import walk
from tasks.methods import build
from tasks.models.files.layout import EXTRAS
from tasks.models.stream.blocks import BlockStream
from tests.tasks import models_zoo as zoo

LAYERS = 6
MENDED = ".".join(("tasks.pruners", "mended"))
SLOWLY = """
import sys, time
from pathlib import Path
from tests.faults.test_walk_kill import prune
prune(Path(sys.argv[1]), lambda block: time.sleep(0.3))
"""


def prune(root: Path, on_block=lambda block: None, method="sparsegpt", seed=1, **choices):
    stream = BlockStream(root / "in", root / "out", parts=root / "parts")
    told = []
    walk(
        stream,
        zoo.batches(seed=seed),
        method if isinstance(method, Pruner) else build("pruners", method),
        sparsity=choices.pop("sparsity", 0.5),
        on_block=lambda block: (told.append(block), on_block(block)),
        **choices,
    )
    return told


def content(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (root / "out").rglob("*") if file.is_file()}


@pytest.fixture
def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    zoo.save("llama", tmp_path / "whole" / "in", layers=LAYERS)
    prune(tmp_path / "whole")
    return content(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_walk_goes_on_at_the_next_block_and_ends_in_the_same_bits(tmp_path, undisturbed):
    root = tmp_path / "killed"
    zoo.save("llama", root / "in", layers=LAYERS)
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(root)], env=os.environ)
    deadline = time.monotonic() + 120
    while not (root / "parts" / "done-00002").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list((root / "parts").glob("done-*")))
    assert 3 <= finished < LAYERS and not (root / "out" / "model.safetensors.index.json").exists()
    written = {path: path.stat().st_mtime_ns for path in (root / "parts").glob("done-*")}
    assert [block.index for block in prune(root)] == list(range(LAYERS))
    assert all(path.stat().st_mtime_ns == before for path, before in written.items()), "a finished block was solved again"
    assert content(root) == undisturbed


class Stop(Exception):
    pass


def stop_after(index: int):
    def stop(block):
        if block.index == index:
            raise Stop

    return stop


@pytest.mark.parametrize("last", [0, 3, LAYERS - 1])
@pytest.mark.parametrize("half", [False, True])
def test_whatever_the_block_it_stopped_after_the_bits_are_the_same(last, half, tmp_path, undisturbed):
    root = tmp_path / "stopped"
    zoo.save("llama", root / "in", layers=LAYERS)
    with pytest.raises(Stop):
        prune(root, stop_after(last))
    if half:  # died between a block's weights and the note that says they are there
        (root / "parts" / f"done-{last:05d}").unlink()
    prune(root)
    assert content(root) == undisturbed
    prune(root)  # and once more over a finished walk
    assert content(root) == undisturbed


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["out/model-00003-of-00007.safetensors", "parts/masks-00001", "parts/done-00001", "parts/identity.json"]
)
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-1])], ids=["flipped", "truncated"])
def test_damage_to_what_an_interrupted_walk_left_is_noticed_and_done_again(name, damage, tmp_path, undisturbed):
    root = tmp_path / "stopped"
    zoo.save("llama", root / "in", layers=LAYERS)
    with pytest.raises(Stop):
        prune(root, stop_after(3))
    damage(root / name)
    prune(root)
    assert content(root) == undisturbed


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"seed": 2}, "data"), ({"sparsity": 0.6}, "config"), ({"method": "wanda"}, "config"), ({"pattern": "2:4"}, "config")],
)
def test_a_walk_of_other_data_or_settings_refuses_to_go_on(changed, what, tmp_path):
    zoo.save("llama", tmp_path / "in", layers=2)
    with pytest.raises(Stop):
        prune(tmp_path, stop_after(0))
    with pytest.raises(ValueError, match=f"was begun with another {what}; remove that folder to begin anew") as refused:
        prune(tmp_path, **changed)
    assert "\n" not in str(refused.value)


def scored_by(sign: str, folder: Path) -> Pruner:
    """A pruner as its file says now."""
    name, file = MENDED, folder / "mended.py"
    file.write_text(
        "from typing import ClassVar\nfrom tasks.calibrate.method import Pruner\n"
        f"class Mended(Pruner):\n    paper: ClassVar[str] = 'none'\n    scope: ClassVar[str] = 'row'\n"
        "    def observer(self, linear): return None\n"
        f"    def score(self, weight_OI, statistics): return {sign}weight_OI.abs()\n"
    )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    exec(compile(file.read_text(), str(file), "exec"), module.__dict__)  # no file of byte code, which is as old
    return module.Mended()


def test_a_walk_whose_method_was_mended_meanwhile_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, MENDED, None)
    for root in ("stopped", "whole"):
        zoo.save("llama", tmp_path / root / "in", layers=LAYERS)
    with pytest.raises(Stop):
        prune(tmp_path / "stopped", stop_after(3), method=scored_by("-", tmp_path))
    (left := tmp_path / "stopped" / "out" / EXTRAS).parent.mkdir()
    left.write_bytes(b"what blocks had besides that the broken code solved")
    prune(tmp_path / "stopped", method=scored_by("+", tmp_path))
    prune(tmp_path / "whole", method=scored_by("+", tmp_path))
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def test_a_changed_model_refuses_to_go_on(tmp_path):
    zoo.save("llama", tmp_path / "in", layers=2)
    with pytest.raises(Stop):
        prune(tmp_path, stop_after(0))
    model = zoo.model("llama", layers=2)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    from tasks.models.files.checkpoint import save_model

    save_model(model.state_dict(), model.config, tmp_path / "in")
    with pytest.raises(ValueError, match="was begun with another model"):
        prune(tmp_path)
