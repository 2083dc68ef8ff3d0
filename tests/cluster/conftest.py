"""The two stores, empty: on disk, and in a bucket of moto's real server on the loopback, spoken to by the real boto3."""

import os

import boto3
import pytest

from cluster.store.local import LocalStore
from cluster.store.url import open_store
from tests.cluster.stores import control


@pytest.fixture(scope="module")
def client(server):
    return boto3.session.Session("test", "test", region_name="us-east-1").client("s3", endpoint_url=server)


@pytest.fixture
def s3(server, client, monkeypatch, tmp_path):
    """An empty bucket named `artifacts`, and a client that sees it as an intruder would."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    control(server, "reset")
    client.create_bucket(Bucket="artifacts")
    return client


@pytest.fixture
def local(tmp_path):
    return LocalStore(tmp_path / "store")


@pytest.fixture
def remote(s3, tmp_path):
    return open_store("s3://artifacts/team/runs", tmp_path / "cache")


@pytest.fixture(params=["local", "remote"])
def store(request):
    return request.getfixturevalue(request.param)
