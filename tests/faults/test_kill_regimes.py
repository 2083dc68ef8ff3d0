"""Kill -9 in the middle of a run whose masks move: what comes out is bit for bit the undisturbed model."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tasks.models.files.layout import MASKS
from tests.faults.test_kill import WORDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

METHODS = {
    "rigl": {"sparsity": 0.8, "interval": 7, "budget": "tokens", "end": 1.0},
    "mdgf_exponential": {"pattern": "1:8", "hard": 0.2},
    "sparcl": {"budget": "tokens", "buffer": 16, "refresh": 5},
}
RECOVERED = {
    "spiel": {"density": 0.05, "interval": 7, "gathered": 3},
    "ast": {"slorb": 16, "refresh": 3},
}


def write_recipe(root: Path, method: str | None = None) -> None:
    """Pretraining under a method; without one, a short dense one and what recovers from it."""
    chance = random.Random(0)
    for task in ("first", "second"):
        documents = [
            json.dumps({"text": " ".join(chance.choices(WORDS[::-1] if task == "second" else WORDS, k=600))}) for _ in range(60)
        ]
        (root / f"{task}.jsonl").write_text("\n".join(documents))
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tasks = {task: {"files": {"paths": [str(root / f"{task}.jsonl")]}} for task in ("first", "second")}

    def steps(count: int) -> dict[str, int]:
        return {"tokens": count * 16 * 64, "length": 64, "batch": 16}

    trained = [{"pretrain": {"method": {method: METHODS[method]}, **steps(400)}}] if method else [{"pretrain": steps(8)}]
    for name in RECOVERED if method is None else ():
        trained.append({"id": name, "from": "pretrain", "recover": {"method": {name: RECOVERED[name]}, **steps(150)}})
    recipe = {
        "name": "killed",
        "model": {"architecture": {"model_type": "llama", "num_key_value_heads": 2, **sizes}},
        "stages": [{"prepare": {"corpus": {"sequence": tasks}, "tokenizer": {"train": 300}}}, *trained],
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))


class Undertaking:
    """The recipe in a process of its own, into a store of its own, saving itself about every half second."""

    def __init__(self, root: Path, name: str, stage: str = "pretrain") -> None:
        self.root, self.home, self.stage = root, root / name, stage
        self.home.mkdir()
        places = {"store": str(self.home / "store"), "scratch": str(self.home / "scratch")}
        profile = {"name": name, **places, "checkpoint_every_seconds": 0.5, "stages": {stage: {"cpus": 1, "threads": 1}}}
        (self.home / "profile.yaml").write_text(yaml.safe_dump(profile))

    def start(self) -> subprocess.Popen:
        arguments = ["run", "--here", "--json", "-p", str(self.home / "profile.yaml"), str(self.root / "recipe.yaml")]
        environment = {**os.environ, "WINNOW_HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", "flows.cli", *arguments], env=environment, **pipes)

    def snapshots(self) -> list[Path]:
        """Of the stage that is being made."""
        made = {record.parent.name for record in self.records()}
        found = self.home.glob(f"scratch/{self.stage}/*/checkpoints/step-*/manifest.json")
        return [path for path in found if path.parents[2].name not in made]

    def records(self) -> list[Path]:
        return sorted(self.home.glob(f"store/{self.stage}/*/record.json"))

    def kill_amid(self, done: int) -> None:
        """Start, and kill -9 at the second checkpoint of the stage that comes after ``done`` of them."""
        process, deadline = self.start(), time.monotonic() + 240
        while len(self.records()) < done or len(self.snapshots()) < 2:
            assert process.poll() is None and time.monotonic() < deadline, "no second checkpoint before the end"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(self.records()) == done

    def finish(self, process: subprocess.Popen) -> list[dict[str, str]]:
        """sha256 of the weights and of the masks, of each stage."""
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, out + err
        stages = [json.loads(record.read_text())["files"] for record in self.records()]
        return [{name: files[name]["sha256"] for name in ("model.safetensors", MASKS) if name in files} for files in stages]


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_very_same_weights_and_masks(method: str, tmp_path: Path) -> None:
    write_recipe(tmp_path, method)
    undisturbed = Undertaking(tmp_path, "undisturbed")
    expected = undisturbed.finish(undisturbed.start())
    killed = Undertaking(tmp_path, "killed")
    killed.kill_amid(0)
    assert killed.finish(killed.start()) == expected


def test_killed_recoveries_by_spiel_and_by_ast_with_branches_go_on_to_the_very_same_weights(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    undisturbed = Undertaking(tmp_path, "undisturbed", "recover")
    expected = undisturbed.finish(undisturbed.start())
    killed = Undertaking(tmp_path, "killed", "recover")
    killed.kill_amid(0)
    killed.kill_amid(1)
    assert killed.finish(killed.start()) == expected and len(expected) == len(RECOVERED)
