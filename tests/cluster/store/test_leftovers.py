"""What the dead left goes, what the living write stays: publications half done on disk and in a bucket, and scratch."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.store import owners
from cluster.store import s3 as s3_store
from cluster.store.leftovers import tidy
from cluster.store.owners import owned, reap
from tests.cluster.stores import artifact, contents, directory, publish

ROOT = Path(__file__).parents[3]
WRITER = """
import sys, pathlib
from cluster.store.files import temporary_beside
with temporary_beside(pathlib.Path(sys.argv[1]), 0) as temporary:
    (temporary / "model").write_bytes(bytes(1000))
    print(temporary, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(local):
    """A publisher that stands half way, in a process of its own."""
    final = local.root / artifact().address
    command = [sys.executable, "-c", WRITER, str(final)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.temporary = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()


def aged(*paths: Path) -> None:
    for path in paths:
        for each in (path, *path.rglob("*")):
            os.utime(each, (time.time() - 2 * owners.SILENT_SECONDS,) * 2)


def test_what_a_killed_publisher_left_goes_and_a_living_ones_stays(local, writer):
    assert local.leftovers(remove=True) == {} and (writer.temporary / "model").exists()
    writer.send_signal(signal.SIGSTOP)  # stopped is not dead
    aged(writer.temporary, owners.lock_of(writer.temporary))
    assert local.leftovers(remove=True) == {} and (writer.temporary / "model").exists()
    writer.kill()
    writer.wait()
    assert local.leftovers() == {str(writer.temporary): 1000} and writer.temporary.exists()
    assert local.leftovers(remove=True) == {str(writer.temporary): 1000}
    assert list(writer.temporary.parent.iterdir()) == []


def test_of_another_kernel_or_without_a_lock_only_a_days_silence_is_proof(local, tmp_path):
    foreign, bare = (local.root / "prune" / f".wanda-0.{digit * 32}" for digit in "ab")
    for folder in (foreign, bare):
        directory(folder)
    owners.lock_of(foreign).write_text("another-kernel\n")
    assert local.leftovers(remove=True) == {}
    aged(foreign, bare, owners.lock_of(foreign))
    (bare / "masks" / "layer.bin").touch()  # a sign of life, deep inside
    assert list(local.leftovers(remove=True)) == [str(foreign)] and bare.exists()


def test_a_published_artifact_leaves_neither_a_lock_nor_anything_else(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    assert [path.name for path in (local.root / "prune").iterdir()] == [Path(record.address).name]
    assert local.leftovers() == {}


def test_scratch_of_a_published_stage_goes_and_that_of_an_unpublished_or_living_one_stays(local, tmp_path):
    done, going, unfinished = artifact(), artifact(other=1), artifact(other=2)
    folders = [directory(tmp_path / "scratch" / made.address) for made in (done, going, unfinished)]
    for made in (done, going):
        publish(local, made, directory(tmp_path / made.key))
    for folder in folders:
        with owned(folder):  # which is there when the owner goes, as after a kill
            pass
    with owned(folders[1]):
        tidy(local, tmp_path / "scratch")
        assert [folder.exists() for folder in folders] == [False, True, True]
    tidy(local, tmp_path / "scratch")
    assert [folder.exists() for folder in folders] == [False, False, True]
    assert {path.name for path in folders[2].parent.iterdir()} == {folders[2].name, f"{folders[2].name}.lock"}


def test_ranks_own_a_folder_together_and_the_last_takes_the_lock_away(tmp_path):
    folder = tmp_path / "work"
    with ExitStack() as ranks:
        ranks.enter_context(owned(folder))
        with owned(folder):
            pass
        assert reap(folder, remove=True) is None and owners.lock_of(folder).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def silent(monkeypatch):
    monkeypatch.setattr(s3_store, "SILENT_SECONDS", -1.0)


def unfinished(s3, key: str) -> str:
    """An upload in parts that nobody ends."""
    place = {"Bucket": "artifacts", "Key": f"team/runs/{key}"}
    upload = s3.create_multipart_upload(**place)["UploadId"]
    s3.upload_part(**place, PartNumber=1, UploadId=upload, Body=b"p" * 500)
    return upload


def test_parts_and_objects_that_no_record_names_are_removed_after_a_day_of_silence(remote, s3, tmp_path, monkeypatch):
    kept = publish(remote, artifact(), directory(tmp_path / "kept"))
    dead = artifact(other=1).address
    s3.put_object(Bucket="artifacts", Key=f"team/runs/{dead}/{'a' * 64}/model", Body=b"m" * 1000)
    s3.put_object(Bucket="artifacts", Key=f"team/runs/{kept.address}/{'a' * 64}/loser", Body=b"l" * 100)
    unfinished(s3, f"{dead}/{'b' * 64}/model")
    assert remote.leftovers(remove=True) == {}  # young: somebody may be at it
    monkeypatch.setattr(s3_store, "SILENT_SECONDS", -1.0)
    expected = {f"{remote.url}/{dead}": 1500, f"{remote.url}/{kept.address}": 100}
    assert remote.leftovers() == expected == remote.leftovers(remove=True)
    assert remote.leftovers() == {} and remote.verify(kept) == []
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="artifacts")


def test_a_part_uploaded_just_now_shows_that_its_publisher_lives(remote, s3, monkeypatch):
    dead, ages = artifact(other=1).address, remote.bucket.ages
    s3.put_object(Bucket="artifacts", Key=f"team/runs/{dead}/{'a' * 64}/model", Body=b"m" * 1000)
    old = 2 * owners.SILENT_SECONDS
    monkeypatch.setattr(remote.bucket, "ages", lambda start: {key: (size, old) for key, (size, _) in ages(start).items()})
    assert remote.leftovers() == {f"{remote.url}/{dead}": 1000}
    unfinished(s3, f"{dead}/{'b' * 64}/model")
    assert remote.leftovers(remove=True) == {}


def test_a_publisher_writes_anew_what_it_finds_old_so_that_nobody_takes_it_for_a_dead_ones(remote, s3, tmp_path, silent):
    def written():
        found = s3.list_objects_v2(Bucket="artifacts", Prefix=f"team/runs/{artifact().address}/")["Contents"]
        return {entry["Key"]: entry["LastModified"] for entry in found if not entry["Key"].endswith("record.json")}

    source = directory(tmp_path / "out")
    record = publish(remote, artifact(), source)
    remote.bucket.delete(f"{record.address}/record.json")
    before = written()
    time.sleep(1.1)  # S3 tells whole seconds
    publish(remote, artifact(), source)
    assert before and all(moment > before[key] for key, moment in written().items())
    assert contents(remote.fetch(record))["model.safetensors"] == b"weights"
