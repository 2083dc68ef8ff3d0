"""An alias of MLflow's registry moves once for all who ask at a time, back again, and never to a model that failed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import registry
from cluster.logged import Model
from cluster.overview import TAG
from cluster.runs import Runs
from cluster.servers.ports import LOOPBACK
from cluster.tracking import EXPERIMENT, Tracking
from flows.gates import read_gate
from flows.promotion import crown
from tests.cluster import registered
from tests.flows.command import winnow

pytestmark = pytest.mark.slow
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)


def free_port() -> int:
    import socket

    with socket.socket() as asked:
        asked.bind((LOOPBACK, 0))
        return int(asked.getsockname()[1])


@pytest.fixture(scope="module")
def postgres(tmp_path_factory) -> Iterator[str]:
    """A database of its own, by whoever may run one: root may not."""
    if POSTGRES is None:
        pytest.skip("no PostgreSQL here")
    root, port = Path(f"/tmp/winnow-pg-{os.getpid()}"), free_port()
    root.mkdir(mode=0o700)
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    shutil.chown(root, user.pw_uid, user.pw_gid)
    who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **who}
    subprocess.run([POSTGRES / "initdb", "-D", root / "data", "-U", "winnow", "-A", "trust", "-N"], check=True, **quiet)
    options = ["-D", root / "data", "-p", str(port), "-h", LOOPBACK, "-k", root, "-F"]
    server = subprocess.Popen([POSTGRES / "postgres", *options], **quiet)
    try:
        ready = [POSTGRES / "pg_isready", "-h", LOOPBACK, "-p", str(port)]
        while subprocess.run(ready, check=False, **quiet).returncode:
            time.sleep(0.2)
        yield f"postgresql://winnow@{LOOPBACK}:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(root)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request, tmp_path_factory) -> Iterator[str]:
    """An MLflow server on a database of each kind."""
    root, port = tmp_path_factory.mktemp(request.param), free_port()
    store = f"sqlite:///{root}/mlflow.db" if request.param == "sqlite" else request.getfixturevalue("postgres")
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--default-artifact-root", str(root / "artifacts"), "--no-serve-artifacts"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://{LOOPBACK}:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()
                time.sleep(0.5)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.fixture(scope="module")
def told(server, tmp_path_factory) -> Tracking:
    """A run that made three models, a, b and c; the last fails."""
    return run_of(server, tmp_path_factory.mktemp("home"))


def run_of(server: str, home: Path) -> Tracking:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(home))
        run = Tracking.start(server, "tiny", {"winnow.recipe": "tiny"}, {})
    for key in "abc":
        run.child(key, {"winnow.key": key}, {})
        tags = {"winnow.address": f"prune/wanda-{key}", "winnow.recipe": "tiny", "winnow.size": "1.00 MB"}
        gates = {"winnow.gates": "passes" if key < "c" else "fails: sparsity >= 0.5 (0.4, and the limit is 0.5)"}
        for _ in range(2):  # a cached rerun tells it again
            run.model(key, Model(f"prune-wanda-{key}", key, tags | gates, {"perplexity": 12.5}))
    return run


def holder(told: Tracking, name: str) -> tuple[int, str]:
    version = told.client.get_model_version_by_alias(name, "champion")
    return int(version.version), version.tags["winnow.address"].removeprefix("prune/wanda-")


def promote(server: str, key: str, name: str | None, force: bool = False) -> registry.Moved:
    return registry.promote(server, f"prune/wanda-{key}", key, name, "champion", force)


def test_an_artifact_is_one_logged_model_and_one_version_under_its_recipes_name(server, told):
    assert len(told.client.search_logged_models([told.experiment])) == 3
    assert str(promote(server, "a", None)) == "champion of tiny moved to version 1 (prune/wanda-a)"
    assert str(promote(server, "a", None)) == "champion of tiny is version 1 already (prune/wanda-a)"
    (version,) = told.client.search_model_versions("name = 'tiny'")
    assert version.tags["winnow.size"] == "1.00 MB" and version.tags["winnow.gates"] == "passes"


def test_an_experiment_that_was_there_is_told_its_kind_and_view(told):
    tags = told.client.get_experiment_by_name(EXPERIMENT).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development" and "metrics.`perplexity`" in tags[TAG]
    assert "viewStateShareKey=winnow" in tags["mlflow.note.content"]


def test_a_model_that_failed_its_gates_leaves_the_alias_unless_it_is_forced(server, told):
    promote(server, "a", "gated")
    with pytest.raises(ValueError, match=r"^prune/wanda-c fails: sparsity >= 0.5 .*--force"):
        promote(server, "c", "gated")
    assert holder(told, "gated") == (1, "a")
    assert (promote(server, "c", "gated", force=True).version, holder(told, "gated")) == (2, (2, "c"))


def test_a_rollback_gives_the_alias_to_who_had_it_before_and_to_who_had_it_before_that(server, told, capsys, tmp_path):
    profile = tmp_path / "profile.yaml"
    profile.write_text(f"mlflow: {{tracking_uri: '{server}'}}\n")
    for key in "abc":
        promote(server, key, "back", force=True)
    for number, key in ((2, "b"), (1, "a")):
        assert winnow("rollback", "back", "-p", str(profile)) == 0
        said = f"champion of back moved from version {number + 1} to version {number} (prune/wanda-{key})"
        assert said in capsys.readouterr().out and holder(told, "back") == (number, key)
    assert winnow("rollback", "back", "-p", str(profile)) == 2
    assert "no version had it before that is there still" in capsys.readouterr().err
    assert winnow("rollback", "bakc", "-p", str(profile)) == 2
    assert "NAME: MLflow has no registered model 'bakc' whose aliases moved; choose one of back" in capsys.readouterr().err
    assert winnow("rollback", "back", "champoin", "-p", str(profile)) == 2
    assert "ALIAS: back has no alias 'champoin'; choose one of champion" in capsys.readouterr().err


def test_what_mlflow_gc_removed_for_good_holds_up_neither_moves_nor_a_collection(tmp_path):
    """The run that kept the moves: every promotion failed from then on, each run waited half a minute, and winnow gc too."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    told = run_of(uri, tmp_path)
    assert [promote(uri, key, "gone").version for key in "ab"] == [1, 2]
    kept = told.client.get_registered_model("gone").tags["winnow.moves"]
    told.client.delete_run(kept)
    gone = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--run-ids", kept]
    subprocess.run(gone, env={**os.environ, "MLFLOW_TRACKING_URI": uri}, check=True, capture_output=True)
    assert not Runs(uri).standing().needed
    with pytest.raises(ValueError, match="no version had it before that is there still"):
        registry.rollback(uri, "gone", "champion")
    moved = registry.promote(uri, "prune/wanda-c", "c", "gone", "champion", force=True)
    assert (moved.before, moved.version) == (2, 3) and holder(told, "gone") == (3, "c")
    assert told.client.get_registered_model("gone").tags["winnow.moves"] != kept
    assert registry.rollback(uri, "gone", "champion").version == 2


def test_of_promotions_at_once_one_wins_and_the_others_are_told(server, told):
    promote(server, "a", "raced")
    command = [sys.executable, "-m", registered.__name__, server]
    racers = [
        subprocess.Popen([*command, key, "raced"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for key in "bc"
    ]
    for racer in racers:
        assert racer.stdout.readline() == "looked\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = sorted(racer.communicate(timeout=120)[0].strip() for racer in racers)
    assert "moved from version 1 to version" in said[0] and said[1].startswith("told: champion of raced went to version")
    won = int(said[0].partition("to version ")[2].partition(" ")[0])
    assert holder(told, "raced")[0] == won and len(told.client.search_model_versions("name = 'raced'")) in (2, 3)


def test_after_a_run_the_champion_is_a_model_that_passed_every_gate_or_who_it_was(server, told):
    gates = [read_gate("sparsity >= 0.5"), read_gate("perplexity <= 20")]

    def ran(key: str, **numbers: float) -> str:
        model = {"stage": key, "key": key, "address": f"prune/wanda-{key}", "branch": {}, **numbers}
        model["gates"] = [gate.judge(model, {}) for gate in gates]
        return (crown(told, server, {"recipe": "crowned", "models": [model], "ranking": None}) or {"says": ""})["says"]

    assert ran("a", sparsity=0.5, perplexity=10.0) == "champion of crowned moved to version 1 (prune/wanda-a)"
    assert ran("b", sparsity=0.4, perplexity=5.0) == ""  # fails one
    assert ran("b", sparsity=0.6) == ""  # perplexity was not measured
    assert holder(told, "crowned") == (1, "a")
    assert ran("b", sparsity=0.6, perplexity=9.0) == "champion of crowned moved from version 1 to version 2 (prune/wanda-b)"
    assert holder(told, "crowned") == (2, "b")
