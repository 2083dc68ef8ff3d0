"""Two terminals, one recipe: what one run is making the other waits for. One terminal, a damaged store: it heals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cluster.profile import Profile
from cluster.servers.embedded import Server
from cluster.servers.processes import Process
from cluster.servers.state import State, write_state
from cluster.store.local import LocalStore
from flows.plan import Plan, prepare
from tasks.train.attempts import register_attempt
from tests.flows.command import winnow

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
RECIPE = {
    "name": "twice",
    "description": "one small dense model",
    "model": {"architecture": {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 64, **SIZES}},
    "stages": [
        {"prepare": {"corpus": {"stdlib": {"only": ["email", "json", "asyncio"]}}, "tokenizer": {"train": 300}}},
        {"pretrain": {"method": "dense", "tokens": 2048, "length": 32, "batch": 8}},
    ],
}


def make_plan(tmp_path: Path) -> Plan:
    return prepare(str(tmp_path / "twice.yaml"), Profile(store=str(tmp_path / "home" / "store")))[0]


def start(tmp_path: Path, *more: str) -> subprocess.Popen:
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(RECIPE))
    every = "from flows import cli, display; display.LINE_SECONDS = 0.0; cli.main()"  # a line for all that a stage tells
    command = [sys.executable, "-c", every, "run", str(tmp_path / "twice.yaml"), "--here", *more]
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path / "home"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def test_runs_of_the_same_recipe_at_the_same_time_make_everything_once(tmp_path):
    runs = [start(tmp_path) for _ in range(2)]
    told = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert sum("\npretrain: 100% 2,048 tokens" in text for text in told) == 1, told  # one of them trained


def test_the_same_command_mends_a_damaged_store_and_says_what_was_wrong(tmp_path):
    run = start(tmp_path)
    assert run.communicate(timeout=300)[0] and run.returncode == 0
    store = LocalStore(tmp_path / "home" / "store")
    before = {record.address: record.files for record in store.records()}
    data, model = sorted(before)
    (store.root / data / "record.json").write_text("{")
    weights = store.root / model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    run = start(tmp_path)
    told = run.communicate(timeout=300)[0]
    assert run.returncode == 0, told
    lines = [line for line in told.splitlines() if "is kept aside as" in line]
    assert len(lines) == 2 and f"{data} was damaged (record.json: not a record" in lines[0]
    assert f"{model} was damaged (model.safetensors: expected sha256" in lines[1]
    weights_alone = {name: entry for name, entry in before[model].items() if not name.startswith("report/")}
    after = {record.address: record.files for record in store.records()}
    assert after[data] == before[data] and after[model].items() >= weights_alone.items()
    assert [store.damage(address) for address in store.addresses()] == [[], []]


def test_a_training_that_another_run_took_over_ends_in_one_line_and_goes_on_once_it_may(tmp_path):
    """What the run made before stays; the directory of the other's checkpoints is left as it is."""
    (tmp_path / "profile.yaml").write_text("{engine: torch, checkpoint_every_seconds: 0.01, stages: {default: {cpus: 1}}}")
    long = ("--set", "pretrain.tokens=204800", "-p", str(tmp_path / "profile.yaml"))
    run = start(tmp_path, *long)
    while not (owner := next((tmp_path / "home").glob("scratch/pretrain/*/checkpoints/owner.json"), None)):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.02)
    register_attempt(owner.parent, attempt=2**62)  # later than any clock
    told = run.communicate(timeout=300)[0]
    assert run.returncode == 1 and "Traceback" not in told, told
    last = told.splitlines()[-1]
    assert last.startswith(f"winnow: {owner.parent} belongs to attempt") and last.endswith("run the same command to go on"), (
        told
    )
    again = start(tmp_path, *long)  # takes it over in turn
    assert again.communicate(timeout=300)[0] and again.returncode == 0


def test_a_home_whose_servers_all_died_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WINNOW_HOME", str(tmp_path))
    told = {"mark": "", "url": "http://127.0.0.1:1", "token": "", "log": "", "ports": {}}
    dead = {kind: Server(process=Process(pid=1, created="0@no-boot"), **told) for kind in ("mlflow", "supervisor")}
    write_state(tmp_path / "services.json", State(mode="up", temporary=str(tmp_path / "ray"), servers=dead))
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(RECIPE))
    assert winnow("run", str(tmp_path / "twice.yaml"), "--here") == 2
    assert "the servers of this home have died; winnow up starts them again" in capsys.readouterr().err


BESIDE = """
import sys
from rich.console import Console
from cluster.profile import PrefectTarget, Profile, RayTarget
from flows.launch import _servers
url = "http://127.0.0.1:9"
with _servers(Profile(ray=RayTarget(address=url), prefect=PrefectTarget(api_url=f"{url}/api")), Console(), needed=True):
    print(hasattr(sys.modules.get("flows.pipeline"), "pipeline"))
"""


def test_prefect_is_imported_in_whole_before_the_run_asks_for_a_part_of_it(tmp_path):
    """Where the servers stand already the run is as far at once, and of two threads in Prefect's imports one gave up."""
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BESIDE], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
