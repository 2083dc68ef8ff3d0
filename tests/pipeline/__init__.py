"""The whole pipeline as its users drive it: the command line, real servers, a model small enough for seconds.

What the tests share stands here: a home with a corpus and recipes of its own, a command run under the eyes of a witness
that writes down every process of the home's servers, and the ledger that reads MLflow.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.servers.processes import family
from cluster.servers.services import Services

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LENGTH = 64
SHARED = {"length": LENGTH, "batch": 16}
GRADUAL = {"gradual": {"sparsity": 0.5, "interval": 5}}
WORDS = {
    "noun": ("farmer", "river", "basket", "window", "teacher", "garden", "engine", "letter", "winter", "bridge"),
    "verb": ("carries", "follows", "paints", "repairs", "watches", "forgets", "measures", "opens"),
    "kind": ("old", "quiet", "bright", "heavy", "distant", "broken", "gentle", "narrow"),
}


def pretrain(method: Any, steps: int) -> dict[str, Any]:
    """A pretrain stage that costs what ``steps`` dense steps cost."""
    return {"pretrain": {"method": method, "tokens": steps * 16 * LENGTH, "learning_rate": 4e-3, **SHARED}}


def prune(sequences: int = 16) -> dict[str, Any]:
    return {"prune": {"method": "wanda", "pattern": "2:4", "sequences": sequences, "length": LENGTH}}


@dataclass
class Done:
    """A command that has ended, and who lived while it ran: the processes of its home's servers."""

    code: int
    out: str
    err: str
    seconds: float
    seen: set[psutil.Process]

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out)

    @property
    def survivors(self) -> list[psutil.Process]:
        return [process for process in self.seen if lives(process)]


class Home:
    """A WINNOW_HOME with a corpus, a profile and recipes of its own."""

    def __init__(self, root: Path, **profile: Any) -> None:
        self.root, self.directory = root, root / "winnow"
        self.variables = {"WINNOW_HOME": str(self.directory), "HOME": str(root)}
        self.corpus = self.root / "corpus.jsonl"
        self.corpus.write_text("\n".join(json.dumps({"text": text}) for text in _documents()))
        self.profile = self.root / "profile.yaml"
        one_core = {"default": {"cpus": 1}, "evaluate": {"cpus": 0.5, "threads": 1}, "speed": {"cpus": "all"}}
        self.profile.write_text(yaml.safe_dump({"stages": one_core, **profile}))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}

    def recipe(self, name: str, *stages: dict[str, Any], evaluate: dict[str, Any] | None = None) -> Path:
        prepare = {"prepare": {"corpus": {"files": {"paths": [str(self.corpus)]}}, "tokenizer": {"train": 512}}}
        document = {
            "name": name,
            "model": {"architecture": ARCHITECTURE},
            "evaluate": evaluate or {},
            "stages": [prepare, *stages],
        }
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def start(self, *arguments: Any) -> Witnessed:
        return Witnessed(self, [sys.executable, "-m", "flows.cli", *map(str, arguments)])

    def winnow(self, *arguments: Any, code: int = 0) -> Done:
        done = self.start(*arguments).wait()
        assert done.code == code, done.out + done.err
        return done

    def run(self, recipe: Path, *, code: int = 0) -> Done:
        return self.winnow("run", recipe, "-p", self.profile, "--json", code=code)


def _as_from_a_terminal() -> None:
    """A suite that runs in the background of a script ignores Ctrl-C, and what it starts would as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Witnessed:
    """A command in a process group of its own, as a terminal starts it."""

    def __init__(self, home: Home, command: list[str]) -> None:
        self.directory, self.seen, self.ended = home.directory, set(), threading.Event()
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env=home.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            preexec_fn=_as_from_a_terminal,
        )
        self.witness = threading.Thread(target=self._watch, daemon=True)
        self.witness.start()

    def wait(self, seconds: float = 400) -> Done:
        out, err = self.process.communicate(timeout=seconds)
        took = time.monotonic() - self.begun
        self.ended.set()
        self.witness.join()
        return Done(self.process.returncode, out, err, took, self.seen)

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            if state := Services(self.directory).state:
                servers = state.servers.values()
                self.seen.update(family([server.process for server in servers], {server.mark for server in servers}))


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextmanager
def made_home(factory: pytest.TempPathFactory, name: str, **profile: Any) -> Iterator[Home]:
    home = Home(factory.mktemp(name), **profile)
    try:
        yield home
    finally:
        Services(home.directory).stop()


class Ledger:
    """What MLflow holds, read through its own client."""

    def __init__(self, uri: str) -> None:
        self.client = MlflowClient(uri)
        self.experiment = self.client.get_experiment_by_name("winnow").experiment_id

    @classmethod
    def of(cls, home: Home) -> Ledger:
        return cls(f"sqlite:///{home.directory}/mlflow.db")

    def parents(self, name: str) -> list[Run]:
        """The runs of a recipe, the oldest first."""
        runs = self._search(f"attributes.run_name = '{name}'")
        return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]

    def children(self, parent: Run) -> dict[str, Run]:
        return {run.info.run_name: run for run in self._search(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")}

    def curves(self, run: Run) -> dict[str, dict[int, float]]:
        """metric -> {step: value} of what was told at several steps, and at each step told one value."""
        told = {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        points = {name: {(point.step, point.value) for point in points} for name, points in told.items()}
        curves = {name: dict(sorted(points)) for name, points in points.items() if len(points) > 1}
        assert all(len(curve) == len(points[name]) for name, curve in curves.items()), "two values at one step"
        return curves

    def figures(self, run: Run, target: Path) -> dict[str, bytes]:
        names = [file.path for file in self.client.list_artifacts(run.info.run_id, "figures")]
        return {name: Path(self.client.download_artifacts(run.info.run_id, name, str(target))).read_bytes() for name in names}

    def models(self, parent: Run) -> dict[str, Any]:
        """address -> LoggedModel of the children of a run."""
        runs = {run.info.run_id for run in self.children(parent).values()}
        found = self.client.search_logged_models([self.experiment], max_results=1000)
        return {model.tags["winnow.address"]: model for model in found if model.source_run_id in runs}

    def _search(self, which: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], which, order_by=["attributes.start_time ASC"]))


def _documents() -> list[str]:
    """Eighty texts of sixty lines: enough to be learned from, and for questions about the next line."""
    chance = random.Random(0)

    def thing() -> str:
        return f"the {chance.choice(WORDS['kind'])} {chance.choice(WORDS['noun'])}"

    def line(_: int) -> str:
        return f"{thing()} {chance.choice(WORDS['verb'])} {thing()}."

    return ["\n".join(map(line, range(60))) for _ in range(80)]
