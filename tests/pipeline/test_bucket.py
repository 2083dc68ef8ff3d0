"""Artifacts in a bucket: the same run, its store on S3 (moto's real server), its cache a thing that may be lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import boto3
import pytest

from tests.pipeline import GRADUAL, LENGTH, Done, Home, made_home, pretrain, prune

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SECRET = "only-the-environment-knows-this"
MEASURED = ("pattern", "perplexity")
STAGES = ("prepare", *(id for model in ("pretrain", "prune") for id in (model, *(f"{model}.{name}" for name in MEASURED))))


@pytest.fixture(scope="module")
def bucket(server: str):
    session = boto3.session.Session("key", SECRET, region_name="us-east-1")
    bucket = session.resource("s3", endpoint_url=server).Bucket("artifacts")
    bucket.create()
    return bucket


@pytest.fixture(scope="module")
def home(server: str, bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """The credentials stand in the environment the servers start in: a job is never told a secret."""
    with made_home(tmp_path_factory, "bucket", store="s3://artifacts/team/runs") as home:
        home.variables |= {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": server,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
        yield home


@pytest.fixture(scope="module")
def first(home: Home) -> Done:
    return run(home)


def run(home: Home) -> Done:
    evaluate = {"perplexity": {"length": LENGTH, "tokens": 1024}, "pattern": {}}
    return home.run(home.recipe("remote", pretrain(GRADUAL, 10), prune(), evaluate=evaluate))


def test_every_artifact_is_in_the_bucket(first: Done, bucket) -> None:
    assert [stage["id"] for stage in first.summary["stages"]] == list(STAGES)
    keys = {entry.key for entry in bucket.objects.all()}
    for stage in first.summary["stages"]:
        assert f"team/runs/{stage['address']}/record.json" in keys
    assert sum(key.endswith("/record.json") for key in keys) == len(STAGES)
    assert first.summary["models"][-1]["pattern_holds"] == 1 and first.survivors == []


def test_no_secret_is_written_anywhere_in_the_home(home: Home, first: Done) -> None:
    files = [file for file in home.directory.rglob("*") if file.is_file()]
    assert files and [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_a_run_that_lost_its_cache_is_cached_all_the_same(home: Home, first: Done) -> None:
    shutil.rmtree(home.directory / "scratch")
    done = run(home)
    assert all(stage["cached"] for stage in done.summary["stages"]) and done.seen == set()
    assert done.summary["models"] == first.summary["models"]


def test_an_artifact_in_the_bucket_is_verified(home: Home, first: Done) -> None:
    done = home.winnow("verify", first.summary["models"][-1]["address"], "-p", home.profile)
    assert "14 masks keep their promises; the model loads" in done.out and "as recorded" in done.out


def test_damage_in_the_bucket_heals_within_one_run_and_deletes_nothing(home: Home, first: Done, bucket) -> None:
    address = first.summary["models"][-1]["address"]
    record = f"team/runs/{address}/record.json"
    (weights, *_) = [entry for entry in bucket.objects.filter(Prefix=f"team/runs/{address}/") if "safetensors" in entry.key]
    content = weights.get()["Body"].read()
    weights.put(Body=content[:-1] + bytes([content[-1] ^ 1]))
    before = {entry.key for entry in bucket.objects.all()}
    shutil.rmtree(home.directory / "scratch")
    done = run(home)
    (line,) = [line for line in done.err.splitlines() if "is kept aside as" in line]
    assert address in line and "s3://artifacts/team/runs/.quarantine/" in line
    assert [stage["id"] for stage in done.summary["stages"] if not stage["cached"]] == ["prune"]
    assert done.summary["models"][-1]["perplexity"] == first.summary["models"][-1]["perplexity"]
    after = {entry.key for entry in bucket.objects.all()}
    assert before <= after and record in after  # what is new is the old record, and reports with other times in them
    assert all("/.quarantine/" in key or f"{address}/" in key for key in after - before)
    assert "0 damaged" in home.winnow("verify", "--all", "-p", home.profile).out
