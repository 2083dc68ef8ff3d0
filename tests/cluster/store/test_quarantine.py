"""Damage heals: what is damaged is found, kept aside, named, and made again, on disk and in a bucket. It hides nothing else."""

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cluster.store.artifacts import CorruptArtifact, Record, nearest
from cluster.store.local import LocalStore, sha256_of
from cluster.store.s3 import S3Store
from tests.cluster.stores import artifact, contents, control, directory, key_of, publish, tamper

RACERS = 8


def edited(content: bytes) -> bytes:
    """A record with another number measured, as an editor would leave it."""
    fields = json.loads(content)
    return json.dumps({**fields, "metrics": {**fields["metrics"], "perplexity": 3.0}}, indent=2).encode()


RECORD = {
    "record truncated": ("record.json", lambda content: content[:100]),
    "record emptied": ("record.json", lambda content: b""),
    "record edited": ("record.json", edited),
    "record of something else": ("record.json", lambda content: content.replace(b"wanda", b"magni")),
}
FILE = {
    "file flipped": ("model.safetensors", lambda content: bytes([content[0] ^ 1]) + content[1:]),
    "file truncated": ("model.safetensors", lambda content: content[:-1]),
    "file missing": ("masks/layer.bin", lambda content: None),
}


def spoil(store, record: Record, how: str) -> None:
    tamper(store, record, *{**RECORD, **FILE}[how])


@pytest.mark.parametrize("how", [*RECORD, *FILE])
def test_what_a_run_finds_damaged_is_kept_aside_and_can_be_made_again(store, tmp_path, how):
    source = directory(tmp_path / "out")
    record = publish(store, artifact(), source, attempt=1)
    spoil(store, record, how)
    with pytest.raises(CorruptArtifact) as caught:
        store.take(record.address)
    (place,) = store.aside()
    told = str(caught.value)
    assert caught.value.aside == record.address and "\n" not in told
    assert record.address in told and how.startswith("record") == ("record.json: not a record" in told)
    assert told.endswith(f"kept aside as {place}")
    assert store.record(artifact()) is None and store.addresses() == [] and list(store.records()) == []
    again = publish(store, artifact(), source, attempt=2)
    assert again.environment == {"attempt": 2} and store.verify(again) == []
    found = contents(store.take(artifact()))
    assert found.pop("record.json") and found == contents(source)
    assert store.aside() == [place]


@pytest.mark.parametrize("how", [*RECORD, *FILE])
def test_whoever_only_reads_moves_nothing(store, tmp_path, how):
    record = publish(store, artifact(), directory(tmp_path / "out"))
    spoil(store, record, how)
    for _ in range(2):
        with pytest.raises(CorruptArtifact):
            store.fetch(record.address)
        assert store.damage(record.address) and store.addresses() == [record.address] and store.aside() == []


def test_what_was_damaged_lies_aside_with_the_reason_beside_it(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    spoil(local, record, "file flipped")
    spoilt = contents(local.root / record.address)
    local.quarantine(artifact())
    (place,) = map(Path, local.aside())
    assert contents(place) == spoilt and local.root / ".quarantine" / "prune" == place.parent
    assert "model.safetensors: expected sha256" in place.with_name(f"{place.name}.txt").read_text()


def test_the_damaged_record_in_a_bucket_is_kept_with_the_reason(remote, s3, tmp_path):
    record = publish(remote, artifact(), directory(tmp_path / "out"))
    spoil(remote, record, "record truncated")
    spoilt = s3.get_object(Bucket="artifacts", Key=key_of(record, "record.json"))["Body"].read()
    remote.quarantine(artifact())
    key = remote.aside()[0].removeprefix("s3://artifacts/")
    assert s3.get_object(Bucket="artifacts", Key=f"{key}/record.json")["Body"].read() == spoilt
    assert b"not a record" in s3.get_object(Bucket="artifacts", Key=f"{key}.txt")["Body"].read()


@pytest.mark.parametrize("left", ["record deleted", "all deleted", "a file in its place"])
def test_a_directory_that_lost_its_record_is_damaged_and_heals(local, tmp_path, left, capsys):
    source = directory(tmp_path / "out")
    place = local.root / publish(local, artifact(), source).address
    (place / "record.json").unlink()
    if left != "record deleted":
        local.discard(artifact().address)
        place.mkdir() if left == "all deleted" else place.write_text("in the way")
    with pytest.raises(CorruptArtifact, match=r"record\.json"):
        local.record(artifact())
    assert local.addresses() == [artifact().address] and local.done(artifact()) is None
    assert local.verify(publish(local, artifact(), source)) == [] and len(local.addresses()) == 1
    assert ("is kept aside as" in capsys.readouterr().err) == (left != "all deleted")


@pytest.mark.parametrize("how", RECORD)
def test_an_unreadable_record_hides_no_other(store, tmp_path, how, capsys):
    source = directory(tmp_path / "out")
    bad, good = publish(store, artifact(), source), publish(store, artifact("magnitude", seed=1), source)
    spoil(store, bad, how)
    for _ in range(2):
        assert list(store.records()) == [good]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and bad.address in told[0] and "left out. winnow verify --all" in told[0]
    assert store.addresses() == sorted([bad.address, good.address])
    assert store.find(good.address) == store.find("prune/mag") == good
    assert nearest(artifact(seed=2), store.records("prune")) == (good, ["params.seed"])
    assert store.locate("prune/wan") == bad.address
    with pytest.raises(CorruptArtifact):
        store.find("prune/wan")


def test_what_is_sound_is_never_moved(store, tmp_path):
    record = publish(store, artifact(), directory(tmp_path / "out"))
    assert store.quarantine(artifact()) == store.quarantine(artifact(seed=7)) == ""
    assert store.record(artifact()) == record and store.aside() == []


def test_damage_that_a_second_look_does_not_find_moves_nothing(local, tmp_path, monkeypatch):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    fetch, reads = local.fetch, [CorruptArtifact("a wrong read", record.address)]

    def unsteady(what) -> Path:
        if reads:
            raise reads.pop()
        return fetch(what)

    monkeypatch.setattr(local, "fetch", unsteady)
    assert local.take(record) == local.root / record.address and local.aside() == []


def test_what_was_made_anew_while_its_damage_was_looked_at_stays(local, tmp_path, monkeypatch):
    record = publish(local, artifact(), directory(tmp_path / "out"), attempt=1)
    spoil(local, record, "file flipped")

    def slow(address: str) -> list[str]:
        local.discard(address)  # and another process makes it again
        publish(LocalStore(local.root), artifact(), directory(tmp_path / "again"), attempt=2)
        return ["model.safetensors: expected sha256"]

    monkeypatch.setattr(local, "damage", slow)
    assert local.quarantine(artifact()) == ""
    assert local.record(artifact()).environment == {"attempt": 2}


def test_of_many_who_meet_damage_one_moves_it_and_of_many_who_mend_it_one_wins(store, tmp_path):
    source = directory(tmp_path / "out")
    record = publish(store, artifact(), source, racer=-1)
    spoil(store, record, "file flipped")
    start = threading.Barrier(RACERS, timeout=60)

    def race(racer: int) -> Record:
        start.wait()
        with pytest.raises(ValueError, match="kept aside|is not published"):
            store.take(record.address)
        start.wait()
        return publish(store, artifact(), source, racer=racer)

    with ThreadPoolExecutor(RACERS) as pool:
        records = list(pool.map(race, range(RACERS)))
    assert all(other == records[0] == store.record(artifact()) for other in records)
    assert records[0].environment["racer"] >= 0 and store.verify(records[0]) == []
    assert len(store.aside()) == 1 or not isinstance(store, LocalStore)  # a bucket may keep a record more than once


def test_what_another_process_moves_aside_while_its_bytes_are_read_is_not_published(local, tmp_path, monkeypatch):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    spoil(local, record, "file flipped")

    def read(path: Path) -> str:
        monkeypatch.undo()
        LocalStore(local.root).quarantine(record.address)
        return sha256_of(path)

    monkeypatch.setattr("cluster.store.local.sha256_of", read)
    with pytest.raises(ValueError, match="is not published"):
        local.take(record)
    assert len(local.aside()) == 1


def test_bytes_that_the_disk_cannot_read_are_damage(local, tmp_path, monkeypatch):
    record = publish(local, artifact(), directory(tmp_path / "out"))

    def read(path: Path) -> str:
        if path.name == "model.safetensors":
            raise OSError(errno.EIO, "Input/output error")
        return sha256_of(path)

    monkeypatch.setattr("cluster.store.local.sha256_of", read)
    with pytest.raises(CorruptArtifact, match=r"model\.safetensors: cannot be read \(Input/output error\).* kept aside"):
        local.take(record)


def test_damage_that_cannot_be_kept_aside_says_who_can_help(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    spoil(local, record, "file flipped")
    (local.root / ".quarantine").write_text("in the way")
    with pytest.raises(CorruptArtifact, match=f"cannot be kept aside .*; run winnow discard {record.address}") as caught:
        local.take(record)
    assert caught.value.aside == "" and "\n" not in str(caught.value)


def test_discarding_removes_one_artifact_and_nothing_else(store, tmp_path):
    source = directory(tmp_path / "out")
    first, other = publish(store, artifact(), source, attempt=1), publish(store, artifact(seed=1), source)
    store.fetch(first), spoil(store, other, "file flipped")
    store.discard(first.address)
    assert store.addresses() == [other.address] and store.record(artifact()) is None and store.aside() == []
    if isinstance(store, S3Store):
        assert store.bucket.sizes(first.address) == {}
    again = publish(store, artifact(), source, attempt=2)
    assert again.environment == {"attempt": 2} and store.damage(again.address) == [] != store.damage(other.address)


@pytest.fixture
def trainer(remote, server, tmp_path):
    """The bucket as a role sees it that may read, write and list, and not delete."""
    iam = boto3.session.Session("test", "test", region_name="us-east-1").client("iam", endpoint_url=server)
    iam.create_user(UserName="trainer")
    allowed = ["s3:GetObject", "s3:PutObject", "s3:ListBucket", "s3:AbortMultipartUpload"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]}
    iam.put_user_policy(UserName="trainer", PolicyName="trainer", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="trainer")["AccessKey"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        control(server, "reset-auth", b"0")
        yield S3Store(remote.url, tmp_path / "trainer")
        control(server, "reset-auth", b"inf")


@pytest.mark.parametrize("how", ["record truncated", "file flipped"])
def test_a_role_without_delete_heals_a_bucket(remote, trainer, server, tmp_path, how):
    control(server, "reset-auth", b"inf")
    source = directory(tmp_path / "out")
    record = publish(remote, artifact(), source, attempt=1)
    spoil(remote, record, how)
    control(server, "reset-auth", b"0")
    with pytest.raises(CorruptArtifact, match="is kept aside as"):
        trainer.take(record.address)
    again = publish(trainer, artifact(), source, attempt=2)
    assert again.environment == {"attempt": 2} and trainer.damage(again.address) == []


def test_a_role_without_delete_cannot_discard_and_is_told_what_it_takes(trainer, tmp_path):
    record = publish(trainer, artifact(), directory(tmp_path / "out"))
    with pytest.raises(PermissionError, match="access denied .*; to discard takes the permission s3:DeleteObject") as caught:
        trainer.discard(record.address)
    assert "\n" not in str(caught.value) and trainer.damage(record.address) == []
