"""The evaluations of a model share workers, and one that fails keeps no other from being made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from cluster.store.artifacts import Artifact
from tasks import job


def unit(stage: str, number: int, workers: int = 1, reads: dict[str, str] | None = None) -> dict[str, Any]:
    resources = {"cpus": 1, "gpus": 0, "memory": None, "workers": workers}
    artifact = Artifact(stage=stage, version=1, label="one", params={"number": number}, parents=reads or {})
    return {"artifact": asdict(artifact), "number": number, "resources": resources}


@pytest.fixture
def ran(monkeypatch) -> Callable[..., list[Any]]:
    """What a job ran on workers, in order: the stage by itself, evaluations in shares."""

    def run(*units: dict[str, Any]) -> list[Any]:
        tasks: list[Any] = []
        monkeypatch.setenv(job.JOB_VARIABLE, json.dumps(units))
        monkeypatch.setattr(job, "_launch", lambda work: tasks.append(work["number"]))
        monkeypatch.setattr(
            "cluster.ray.workers.run_task",
            lambda target, payload, **room: tasks.append((target, [work["number"] for work in payload["work"]])),
        )
        assert job.main() == 0
        return tasks

    return run


def test_evaluations_take_one_worker_together_after_their_stage_or_as_many_as_the_profile_says(ran):
    three = [unit("evaluate", number) for number in (1, 2, 3)]
    assert ran(unit("prune", 0), *three) == [0, ("tasks.job:produce_all", [1, 2, 3])]
    shares = [("tasks.job:produce_all", [1, 3]), ("tasks.job:produce_all", [2])]
    assert sorted(ran(*(unit("evaluate", number, workers=2) for number in (1, 2, 3)))) == shares
    assert ran(unit("prepare", 0)) == [0]


def test_what_reads_another_measurement_of_the_job_comes_after_it_whoever_is_free(ran):
    read = unit("evaluate", 1, workers=2)
    reads = unit("evaluate", 2, workers=2, reads={"ours": Artifact(**read["artifact"]).key})
    assert ran(reads, read) == [("tasks.job:produce_all", [1]), ("tasks.job:produce_all", [2])]


def test_one_that_fails_keeps_no_other_from_being_made_and_is_raised(monkeypatch):
    made = []

    def produce(work):
        if work["number"] < 2:
            raise ValueError(f"no {work['number']}")
        made.append(work["number"])

    monkeypatch.setattr(job, "produce", produce)
    with pytest.raises(ValueError, match="no 0") as failed:
        job.produce_all({"work": [unit("evaluate", number) for number in range(4)]})
    assert made == [2, 3] and failed.value.__notes__ == ["and ValueError: no 1"]
