"""A cluster that has other versions than the submitter says so in one line, before anything is imported or computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.profile import CHECKOUT
from cluster.ray import arrival
from cluster.ray.events import parse_event


def arrive(wanted, *module, flags=()):
    environment = {**os.environ, arrival.VARIABLE: json.dumps(wanted), "PYTHONPATH": str(CHECKOUT)}
    command = [sys.executable, *flags, "-m", "cluster.ray.arrival", *module]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_same_versions_run_the_module_and_give_its_exit_code():
    done = arrive(arrival.versions(), "timeit", "-h")
    assert done.returncode == 0 and "Tool for measuring execution time" in done.stdout, done.stderr
    assert sys.executable in done.stdout.splitlines()[0]


def test_a_mismatch_is_one_line_that_cannot_heal():
    done = arrive({**arrival.versions(), "torch": "1.0", "ray": "9.9"}, "this")
    (event,) = filter(None, map(parse_event, done.stdout.splitlines()))
    here = arrival.versions()
    assert f"torch {here['torch']} (submitted with 1.0), ray {here['ray']} (submitted with 9.9)" in event.message
    assert done.returncode == 1 and event.final and "\n" not in event.message and "Zen" not in done.stdout


def test_a_cluster_that_has_nothing_installed_can_say_so():
    done = arrive(arrival.versions(), flags=("-S",))  # no site-packages at all
    (event,) = filter(None, map(parse_event, done.stdout.splitlines()))
    assert "torch absent (submitted with " in event.message and "deepspeed absent" in event.message and not done.stderr


def test_a_build_for_another_accelerator_is_the_same_version(monkeypatch):
    monkeypatch.setattr(arrival, "version", lambda package: "2.13.0+cu128")
    monkeypatch.setenv(arrival.VARIABLE, json.dumps(dict.fromkeys(arrival.COMPARED, "2.13.0")))
    arrival.check_versions()


def test_a_worker_that_differs_refuses_to_make_an_artifact(monkeypatch):
    from tasks.job import produce

    told = []
    monkeypatch.setenv(arrival.VARIABLE, json.dumps({"torch": "1.0"}))
    with pytest.raises(ValueError, match="submitted with 1.0"):
        produce({}, told.append)
    assert told[0].final
