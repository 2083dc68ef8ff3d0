"""What a job learns of the process that submits it: everything on this machine, no path and no secret on another."""

from __future__ import annotations

import json
import os

import pytest

from cluster.profile import Profile
from cluster.ray import arrival
from cluster.ray.jobs import Jobs
from flows.submit import Submitter

GIVEN = {
    "WINNOW_HOME": "/home/me/winnow",
    "HF_HOME": "/home/me/hub",
    "HF_HUB_OFFLINE": "1",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_PROFILE": "mine",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL_S3": "http://s3:9000",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "TORCH_EXTENSIONS_DIR": "/home/me/extensions",
}


@pytest.fixture
def given(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "HF_", "WINNOW_", "TORCH_EXTENSIONS", "RAY_"))]:
        monkeypatch.delenv(name)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)


def test_a_cluster_elsewhere_is_told_no_path_of_this_machine_and_what_it_must_have(given):
    told = Submitter(Profile(ray={"address": "http://head:8265"}, scratch="/scratch"))._environment()
    assert json.loads(told.pop(arrival.VARIABLE)) == arrival.versions()
    assert told == {
        "WINNOW_HOME": "/scratch",
        "HF_HUB_OFFLINE": "1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "http://s3:9000",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }


def test_a_cluster_of_this_home_is_told_all_but_secrets(given):
    submitter = Submitter(Profile())
    submitter.jobs = Jobs("http://127.0.0.1:1", local=True)
    told = submitter._environment()
    assert GIVEN.keys() - told.keys() == {"AWS_SECRET_ACCESS_KEY"} and arrival.VARIABLE not in told
