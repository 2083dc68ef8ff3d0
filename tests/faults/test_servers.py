"""Kill -9 of each server in mid-training: what Prefect and MLflow say is true within a minute, and the same bits come out."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest
import yaml

from cluster.servers.ask import Api
from cluster.servers.embedded import Server, healthy
from cluster.servers.processes import family
from cluster.servers.services import Services
from tests.pipeline import Done, Home, Ledger, lives, made_home, pretrain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TRUE_WITHIN = 60.0  # seconds


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with made_home(tmp_path_factory, "servers", checkpoint_every_seconds=0.5) as home:
        recipe = home.recipe("killed", pretrain("dense", 250))
        home.directory.mkdir()
        listing = {"deployments": [{"recipe": str(recipe), "profile": str(Trial(home, "serving").profile)}], "promote": None}
        (home.directory / "deployments.yaml").write_text(yaml.safe_dump(listing))
        home.winnow("up")
        yield home


class Trial:
    """One run of the recipe into a store of its own, which has the tokens already."""

    def __init__(self, home: Home, name: str) -> None:
        self.home, self.root, self.recipe = home, home.root / name, home.root / "killed.yaml"
        self.root.mkdir(exist_ok=True)
        places = {"store": str(self.root / "store"), "scratch": str(self.root / "scratch")}
        self.profile = self.root / "profile.yaml"
        self.profile.write_text(yaml.safe_dump({**yaml.safe_load(home.profile.read_text()), **places}))
        if (tokens := home.root / "undisturbed" / "store" / "prepare").exists():
            shutil.copytree(tokens, self.root / "store" / "prepare")

    def start(self) -> Any:
        return self.home.start("run", self.recipe, "-p", self.profile)

    def wait_for_checkpoint(self) -> None:
        wait_for(lambda: list(self.root.glob("scratch/pretrain/*/checkpoints/step-*/manifest.json")), 240, "a checkpoint")

    @property
    def weights(self) -> str:
        (record,) = self.root.glob("store/pretrain/*/record.json")
        return json.loads(record.read_text())["files"]["model.safetensors"]["sha256"]


def wait_for(what: Callable[[], Any], seconds: float, name: str) -> float:
    """Seconds it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < seconds, f"{name} did not come in {seconds:.0f} s"
        time.sleep(0.1)
    return time.monotonic() - begun


def kill(home: Home, *kinds: str, name: str = "") -> None:
    """Kill servers, or the member of their family of this name, and wait until others answer on the same addresses."""
    before = {kind: Services(home.directory).server(kind) for kind in kinds}
    for server in before.values():
        for process in family([server.process], {server.mark}):
            with suppress(psutil.NoSuchProcess):  # the rest of it may end by itself
                if not name or process.name() == name:
                    process.kill()
    for kind, server in before.items():

        def again(kind: str = kind, server: Server = server) -> bool:
            now = Services(home.directory).server(kind)
            return now.process != server.process and now.process.alive and healthy(kind, now)

        took = wait_for(again, TRUE_WITHIN, f"another {kind}")
        after = Services(home.directory).server(kind)
        assert (after.url, after.token, after.restarts) == (server.url, server.token, server.restarts + 1)
        print(f"\n{name or kind}: killed, and another answered in its place after {took:.1f} s")


def ends(home: Home) -> tuple[str, str]:
    """How the newest run of the recipe ended, in Prefect and in MLflow."""
    with sqlite3.connect(home.directory / "prefect" / "prefect.db") as database:
        (flow,) = database.execute("select state_name from flow_run order by created desc limit 1").fetchone()
    return flow, Ledger.of(home).parents("killed")[-1].info.status


def true_ends(home: Home, *expected: str) -> float:
    return wait_for(lambda: ends(home) == expected, TRUE_WITHIN, f"{expected}")


@pytest.fixture(scope="module")
def undisturbed(home: Home) -> str:
    trial = Trial(home, "undisturbed")
    assert trial.start().wait().code == 0
    assert ends(home) == ("Completed", "FINISHED")
    return trial.weights


def finished(trial: Trial, running: Any) -> Done:
    done = running.wait()
    assert done.code == 0 and "pretrain" in done.out, done.out + done.err
    assert not [line for line in done.err.splitlines() if len(line) > 400 or "Traceback" in line], done.err
    true_ends(trial.home, "Completed", "FINISHED")
    return done


def test_a_run_outlives_its_mlflow_and_its_prefect(home: Home, undisturbed: str) -> None:
    trial = Trial(home, "told")
    running = trial.start()
    trial.wait_for_checkpoint()
    kill(home, "mlflow", "prefect")
    done = finished(trial, running)
    assert all(f"{kind} has died and is started again" in done.err for kind in ("mlflow", "prefect")), done.err
    assert trial.weights == undisturbed
    curve = Ledger.of(home)
    run = curve.children(curve.parents("killed")[-1])["pretrain"]
    assert run.info.status == "FINISHED" and max(curve.curves(run)["loss"]) == 250


def test_a_run_goes_on_with_the_ray_that_takes_the_dead_ones_place(home: Home, undisturbed: str) -> None:
    trial = Trial(home, "ray")
    running = trial.start()
    trial.wait_for_checkpoint()
    kill(home, "ray", name="gcs_server")
    done = finished(trial, running)
    assert "ray has died and is started again" in done.err and "died" in home.winnow("status").out
    assert trial.weights == undisturbed


def test_a_run_whose_processes_are_gone_is_crashed_and_its_job_is_joined_by_the_next(home: Home, undisturbed: str) -> None:
    """The server of deployments, and the process in which it ran the flow."""
    trial = Trial(home, "serving")
    prefect = Api("prefect", Services(home.directory).server("prefect"))
    (deployment,) = prefect.ask("POST", "/deployments/filter", {})
    path = f"/deployments/{deployment['id']}/create_flow_run"
    first = prefect.ask("POST", path, {"parameters": {}})["id"]
    trial.wait_for_checkpoint()
    serving = Services(home.directory).server("deployments")
    engines = [process for process in family([], {serving.mark}) if process.pid != serving.process.pid]
    for process in [psutil.Process(serving.process.pid), *engines]:
        process.kill()
    took = wait_for(lambda: ends(home) == ("Crashed", "KILLED"), TRUE_WITHIN, "Crashed and KILLED")
    print(f"\nserving process and flow: killed, and said so after {took:.1f} s")
    second = prefect.ask("POST", path, {"parameters": {}})["id"]
    wait_for(lambda: ends(home) == ("Completed", "FINISHED"), 120, "the second run's end")
    assert first != second and trial.weights == undisturbed
    jobs = Api("ray", Services(home.directory).server("ray")).ask("GET", "/api/jobs/")
    assert sum((job["metadata"] or {}).get("flow_run") in (first, second) for job in jobs) == 1


def test_down_says_what_it_stops_and_leaves_nothing_open(home: Home, undisturbed: str) -> None:
    trial = Trial(home, "stopped")
    running = trial.start()
    trial.wait_for_checkpoint()
    servers = Services(home.directory).state.servers.values()
    seen = family([server.process for server in servers], {server.mark for server in servers})
    begun = time.monotonic()
    down = home.winnow("down")
    print(f"\ndown: {time.monotonic() - begun:.1f} s with a run under way")
    assert down.out.splitlines()[0] == "stopping killed"
    done = running.wait()
    assert (done.code, done.out) == (143, ""), done.err
    assert "run the same command to go on" in done.err.splitlines()[-1]
    assert ends(home) == ("Cancelled", "KILLED") and not [process for process in seen if lives(process)]
    assert list(trial.root.glob("scratch/pretrain/*/checkpoints/step-*/manifest.json"))
