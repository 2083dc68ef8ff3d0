"""Corpora and checkpoints on S3 read like local ones; S3 is moto's server, found by AWS_ENDPOINT_URL."""

from __future__ import annotations

import os
from uuid import uuid4

import boto3
import pytest

from tasks.data.corpus import Files
from tasks.models.checkpoint import Checkpoint


@pytest.fixture(params=["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def bucket(request, server, monkeypatch, tmp_path):
    """Puts objects into a bucket of its own; its URI."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv(request.param, server)
    client = boto3.client("s3", endpoint_url=server)
    name = f"bucket-{uuid4()}"
    client.create_bucket(Bucket=name)

    def put(**objects: bytes) -> str:
        for key, content in objects.items():
            client.put_object(Bucket=name, Key=key.replace("__", "/").replace("_txt", ".txt"), Body=content)
        return f"s3://{name}"

    return put


def test_a_glob_finds_documents_in_a_bucket_and_the_fingerprint_follows_them(bucket):
    uri = bucket(deep__a_txt=b"alpha", deep__b_txt=b"beta", other__c_txt=b"gamma")
    corpus = Files(paths=(f"{uri}/deep/*.txt",))
    assert [(document.name, document.text) for document in corpus.documents()] == [
        ("a.txt", "alpha"),
        ("b.txt", "beta"),
    ]
    assert [document.text for document in Files(paths=(f"{uri}/other/c.txt",)).documents()] == ["gamma"]
    first = corpus.fingerprint()
    bucket(deep__b_txt=b"BETA")
    assert corpus.fingerprint() != first


def test_what_is_not_there_is_named(bucket):
    uri = bucket(a_txt=b"alpha")
    with pytest.raises(ValueError, match=f"corpus file {uri}/none/.*: does not exist"):
        Files(paths=(f"{uri}/none/*.txt",)).fingerprint()


def test_a_model_and_its_teacher_are_fetched_apart(bucket, tmp_path):
    uri = bucket(student__config_txt=b"student", teacher__config_txt=b"teacher", teacher__more_txt=b"more")
    student = Checkpoint(path=f"{uri}/student").fetch(tmp_path)
    teacher = Checkpoint(path=f"{uri}/teacher").fetch(tmp_path)
    assert [file.name for file in student.iterdir()] == ["config.txt"]
    (student / "config.txt").touch()  # and once
    written = (student / "config.txt").stat().st_mtime_ns
    assert Checkpoint(path=f"{uri}/student").fetch(tmp_path) == student
    assert (student / "config.txt").stat().st_mtime_ns == written
    assert (student / "config.txt").read_text() == "student" and (teacher / "config.txt").read_text() == "teacher"
    assert Checkpoint(path=f"{uri}/student").fingerprint() != Checkpoint(path=f"{uri}/teacher").fingerprint()
