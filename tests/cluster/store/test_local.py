"""One publisher wins, nothing half-written is visible, and no wrong byte is ever handed out: both stores, one contract.

S3 is moto's real server on the loopback, spoken to by the real boto3.
"""

import hashlib
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ClientError
from urllib3 import HTTPResponse

from cluster.store.artifacts import CorruptArtifact, Record
from cluster.store.local import LocalStore, sha256_of
from cluster.store.s3 import S3Store
from cluster.store.url import open_store
from tests.cluster.stores import artifact, contents, control, directory, key_of, publish, tamper

ROOT = Path(__file__).parents[3]
RACERS = 30


def test_what_is_published_is_fetched_byte_for_byte(store, tmp_path):
    made, source = artifact(), directory(tmp_path / "out")
    assert store.record(made) is None
    record = publish(store, made, source, host="here")
    assert store.record(made) == store.record(record.address) == record
    found = contents(store.fetch(record))
    assert Record.from_json(found.pop("record.json").decode()) == record
    assert found == contents(source) == {"model.safetensors": b"weights", "masks/layer.bin": b"sthgiew"}
    assert record.files["model.safetensors"] == {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}
    assert store.verify(record) == [] and store.fetch(made) == store.fetch(record.address) == store.fetch(record)


def test_a_second_publisher_is_handed_the_first_record(store, tmp_path):
    first = publish(store, artifact(), directory(tmp_path / "one"), host="first")
    second = publish(store, artifact(), directory(tmp_path / "two", b"other"), host="second")
    assert second == first and second.environment == {"host": "first"}


def test_of_thirty_racing_publishers_exactly_one_wins_and_its_files_are_complete(store, tmp_path):
    sources = [directory(tmp_path / f"out{racer}", b"%d" % racer * 1000) for racer in range(RACERS)]
    start = threading.Barrier(RACERS, timeout=60)

    def race(racer: int) -> Record:
        start.wait()
        return publish(store, artifact(), sources[racer], racer=racer)

    with ThreadPoolExecutor(RACERS) as pool:
        records = list(pool.map(race, range(RACERS)))
    assert all(record == records[0] for record in records)
    winner = sources[records[0].environment["racer"]]
    found = contents(store.fetch(artifact()))
    found.pop("record.json")
    assert found == contents(winner)
    assert store.verify(records[0]) == [] and len(list(store.records())) == 1


def test_an_artifact_may_have_metrics_and_no_files(store, tmp_path):
    (tmp_path / "out").mkdir()
    record = publish(store, artifact(stage="evaluate"), tmp_path / "out")
    assert record.files == {} and list(contents(store.fetch(record))) == ["record.json"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "expected sha256 .* found"),
        (lambda content: content[:-1], "expected 7 bytes, found 6"),
        (lambda content: None, "missing"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_a_changed_byte_is_detected_on_fetch(store, tmp_path, change, problem):
    record = publish(store, artifact(), directory(tmp_path / "out"))
    tamper(store, record, "model.safetensors", change)
    with pytest.raises(CorruptArtifact, match=f"model.safetensors: {problem}"):
        store.fetch(record)
    assert [line.split(":")[0] for line in store.verify(record)] == ["model.safetensors"]


def test_a_byte_that_changes_after_a_fetch_is_detected_by_the_next(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    local.fetch(record)
    tamper(local, record, "model.safetensors", lambda content: b"W" + content[1:])
    with pytest.raises(CorruptArtifact, match="sha256"):
        local.fetch(record)


def test_a_file_written_just_now_is_hashed_on_every_fetch(local, tmp_path, monkeypatch):
    record, hashed = publish(local, artifact(), directory(tmp_path / "out")), []
    monkeypatch.setattr("cluster.store.local.sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    local.fetch(record), local.fetch(record)
    assert len(hashed) == 4


def test_an_old_file_is_hashed_once_and_again_when_it_changes(local, tmp_path, monkeypatch):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    monkeypatch.setattr("cluster.store.local.SETTLED_NANOSECONDS", -1)
    local.fetch(record)
    with monkeypatch.context() as blind:
        blind.setattr("cluster.store.local.sha256_of", lambda path: pytest.fail(f"{path} is hashed again"))
        local.fetch(record)
    time.sleep(0.02)  # one tick of the file system's clock
    tamper(local, record, "model.safetensors", lambda content: b"W" + content[1:])
    with pytest.raises(CorruptArtifact, match="sha256"):
        local.fetch(record)


def test_a_file_the_record_does_not_name_is_refused(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    (local.root / record.address / "masks" / "surprise.pkl").write_bytes(b"x")
    assert local.verify(record) == ["masks/surprise.pkl: not in the record"]
    with pytest.raises(CorruptArtifact, match="surprise.pkl: not in the record"):
        local.fetch(record)


def test_an_object_the_record_does_not_name_is_reported(remote, s3, tmp_path):
    record = publish(remote, artifact(), directory(tmp_path / "out"))
    s3.put_object(Bucket="artifacts", Key=f"team/runs/{record.address}/surprise.pkl", Body=b"x")
    assert remote.verify(record) == ["surprise.pkl: not in the record"]
    assert "surprise.pkl" not in contents(remote.fetch(record))


def test_a_bad_copy_in_the_cache_is_fetched_again(remote, tmp_path):
    record = publish(remote, artifact(), directory(tmp_path / "out"))
    copy = remote.fetch(record) / "model.safetensors"
    copy.write_bytes(b"weightz")
    assert (remote.fetch(record) / "model.safetensors").read_bytes() == b"weights"


def test_concurrent_fetches_share_one_complete_copy(remote, tmp_path):
    record = publish(remote, artifact(), directory(tmp_path / "out"))
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: remote.fetch(record), range(8)))
    assert len(paths) == 1 and [path.name for path in paths.pop().parent.iterdir()] == [Path(record.address).name]


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_links_and_devices_are_not_published(store, tmp_path, kind):
    source = directory(tmp_path / "out")
    if kind == "fifo":
        os.mkfifo(source / "odd")
    else:
        (source / "odd").symlink_to("/etc/passwd" if kind == "file" else "/etc")
    with pytest.raises(ValueError, match="odd is not a plain file"):
        publish(store, artifact(), source)
    assert store.record(artifact()) is None


def test_a_published_file_replaced_by_a_link_is_refused(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    path = local.root / record.address / "model.safetensors"
    path.unlink()
    path.symlink_to(tmp_path / "out" / "model.safetensors")
    with pytest.raises(CorruptArtifact, match="not a plain file"):
        local.fetch(record)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped"])
def test_a_record_that_names_a_file_elsewhere_is_not_read(store, s3, tmp_path, name):
    record = publish(store, artifact(), directory(tmp_path / "out"))
    text = record.to_json().replace("model.safetensors", name)
    if isinstance(store, LocalStore):
        (store.root / record.address / "record.json").write_text(text)
    else:
        s3.put_object(Bucket="artifacts", Key=f"team/runs/{record.address}/record.json", Body=text.encode())
    with pytest.raises(CorruptArtifact, match="file name .* is not a plain relative path"):
        store.fetch(artifact())


def test_a_record_moved_to_another_address_is_not_believed(local, tmp_path):
    record = publish(local, artifact(), directory(tmp_path / "out"))
    other = artifact(seed=2)
    (local.root / record.address).rename(local.root / other.address)
    with pytest.raises(CorruptArtifact, match="holds the record of"):
        local.record(other)


@pytest.mark.parametrize("address", ["../../etc/passwd", "prune/../../x", "prune/wanda-d29d", "/prune/wanda-d29d3555b43f"])
def test_an_address_that_is_none_is_refused(store, address):
    with pytest.raises(ValueError, match="is not an address"):
        store.record(address)


def test_find_takes_an_address_or_a_unique_start_of_an_address_or_key(store, tmp_path):
    source = directory(tmp_path / "out")
    one, two = publish(store, artifact("wanda"), source), publish(store, artifact("magnitude", seed=1), source)
    for prefix in (one.address, "prune/wan", one.key, one.key[:5], one.key[:20]):
        assert store.find(prefix) == one
    with pytest.raises(ValueError, match=f"ambiguous .* choose one of {two.address}, {one.address}"):
        store.find("prune/")
    for prefix in ("quantize/", one.key[:12] + "zz"):
        with pytest.raises(ValueError, match=f"no artifact .* choose one of {two.address}, {one.address}") as caught:
            store.find(prefix)
        assert "\n" not in str(caught.value)
    assert sorted(record.address for record in store.records("prune")) == [two.address, one.address]
    assert list(store.records("quantize")) == []


def test_what_some_stages_made_is_meant_first_and_offered_alone(store, tmp_path):
    source = directory(tmp_path / "out")
    model = publish(store, artifact("wanda"), source)
    measured = publish(store, replace(artifact("size"), stage="evaluate"), source)
    assert store.find("prune", ["prune"]) == model and store.find("evaluate/", ["prune"]) == measured
    for prefix in ("nosuch", ""):
        with pytest.raises(ValueError, match=f"no artifact '{prefix}' in .*; choose one of {model.address}$"):
            store.find(prefix, ["load", "prune"])
    with pytest.raises(ValueError, match="; nothing in it was made by load, merge$"):
        store.find("nosuch", ["load", "merge"])


def test_an_empty_store_says_so(store):
    assert list(store.records()) == []
    with pytest.raises(ValueError, match="it is empty"):
        store.find("prune")
    with pytest.raises(ValueError, match="not published"):
        store.fetch(artifact())


def test_a_writable_store_shows_no_trace_of_the_question(store):
    store.writable()
    store.writable()
    assert list(store.records()) == []


RACER = """
import sys, time
from pathlib import Path
from cluster.store.artifacts import Artifact
from cluster.store.local import LocalStore
root, source, go, racer = sys.argv[1:]
made = Artifact("prune", 1, "wanda", {"sparsity": 0.5}, {})
while not Path(go).exists():
    time.sleep(0.001)
print(LocalStore(root).publish(made, Path(source), {}, 1.0, {}, {"racer": racer}).environment["racer"])
"""

KILLED = """
import os, sys
from pathlib import Path
from cluster.store.artifacts import Artifact
from cluster.store.local import LocalStore
root, source, moment = sys.argv[1:]
setattr(os, moment, lambda *_: (print("now", flush=True), sys.stdin.read()))
LocalStore(root).publish(Artifact("prune", 1, "wanda", {"sparsity": 0.5}, {}), Path(source), {}, 1.0, {}, {})
"""


def python(script: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_thirty_racing_processes_exactly_one_wins(local, tmp_path):
    sources = [directory(tmp_path / f"out{racer}", b"%d" % racer * 1000) for racer in range(RACERS)]
    racers = [python(RACER, local.root, source, tmp_path / "go", racer) for racer, source in enumerate(sources)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    answers = {racer.communicate()[0].strip() for racer in racers}
    assert [racer.returncode for racer in racers] == [0] * RACERS and len(answers) == 1
    found = contents(local.fetch(artifact()))
    found.pop("record.json")
    assert found == contents(sources[int(answers.pop())])
    assert [path.name for path in (local.root / "prune").iterdir()] == [Path(artifact().address).name]


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_publisher_killed_half_way_leaves_nothing_visible(local, tmp_path, moment):
    source = directory(tmp_path / "out")
    victim = python(KILLED, local.root, source, moment)
    assert victim.stdout.readline() == "now\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert any((local.root / "prune").iterdir()), "it was killed before it wrote anything"
    assert local.record(artifact()) is None and list(local.records()) == []
    assert local.verify(publish(local, artifact(), source)) == []


def test_an_upload_that_dies_before_its_record_leaves_nothing_visible(remote, tmp_path, monkeypatch):
    def die(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(remote, "_create", die)
        publish(remote, artifact(), directory(tmp_path / "one", b"first"))
    assert remote.record(artifact()) is None and list(remote.records()) == []
    record = publish(remote, artifact(), directory(tmp_path / "two", b"second"))
    assert (remote.fetch(record) / "model.safetensors").read_bytes() == b"second" and remote.verify(record) == []


def test_a_repeated_upload_skips_what_already_arrived(remote, tmp_path, monkeypatch):
    source = directory(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(remote, "_create", lambda *_: 1 / 0)
        publish(remote, artifact(), source)
    monkeypatch.setattr(remote.bucket.client, "upload_file", lambda *_: pytest.fail("uploaded again"))
    assert remote.verify(publish(remote, artifact(), source)) == []


def test_a_conflict_is_asked_again_and_not_taken_for_a_loss(remote, tmp_path, monkeypatch):
    put, conflicts = remote.bucket.client.put_object, [409, 409]

    def conflict_twice(**arguments):
        if "IfNoneMatch" in arguments and conflicts:
            meta = {"HTTPStatusCode": conflicts.pop()}
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}, "ResponseMetadata": meta}, "PutObject")
        return put(**arguments)

    monkeypatch.setattr(remote.bucket.client, "put_object", conflict_twice)
    assert publish(remote, artifact(), directory(tmp_path / "out"), host="me").environment == {"host": "me"}
    assert conflicts == []


def test_a_server_that_fails_every_third_request_is_outlasted(remote, tmp_path, monkeypatch):
    requests = itertools.count()

    def fail(request, **_):
        return (
            AWSResponse(request.url, 503, {}, HTTPResponse(io.BytesIO(), preload_content=False))
            if next(requests) % 3 == 0
            else None
        )

    monkeypatch.setattr("random.random", lambda: 0)  # botocore's back-off between its attempts
    remote.bucket.client.meta.events.register("before-send.s3", fail)
    record = publish(remote, artifact(), directory(tmp_path / "out"))
    assert contents(remote.fetch(record)).keys() == {"record.json", *record.files}
    assert remote.verify(record) == [] and next(requests) > 12


def test_a_multipart_file_round_trips(remote, s3, tmp_path):
    content = os.urandom(1 << 20) * 20
    record = publish(remote, artifact(), directory(tmp_path / "out", content))
    name = "model.safetensors"
    assert s3.head_object(Bucket="artifacts", Key=key_of(record, name))["ETag"].strip('"').endswith("-3"), (
        "it was not multipart"
    )
    assert (remote.fetch(record) / name).read_bytes() == content and remote.verify(record) == []


def test_checksums_can_be_left_out_for_servers_that_do_not_know_them(s3, server, tmp_path):
    store = S3Store("s3://artifacts", tmp_path / "cache", server, request_checksum_calculation="when_required")
    store.writable()
    assert store.verify(publish(store, artifact(), directory(tmp_path / "out"))) == []


def test_a_store_on_a_full_disk_says_how_much_is_missing_and_leaves_nothing(local, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3}))
    with pytest.raises(OSError, match="14 bytes needed, 3 free.*prune/wanda"):
        publish(local, artifact(), directory(tmp_path / "out"))
    assert list((local.root / "prune").iterdir()) == []


def one_line(caught: pytest.ExceptionInfo, named: str) -> bool:
    return named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/winnow"])
def test_a_local_store_that_cannot_be_written_is_one_line(tmp_path, root):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="is not writable") as caught:
        LocalStore(tmp_path / root).writable()
    assert one_line(caught, root)


def test_a_missing_bucket_is_one_line_and_not_an_empty_store(s3, tmp_path):
    store = open_store("s3://nowhere/runs", tmp_path)
    with pytest.raises(ValueError, match="not writable") as caught:
        store.writable()
    assert one_line(caught, "s3://nowhere/runs: the bucket does not exist")
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        store.record(artifact())


def test_denied_access_is_one_line(s3, server, remote):
    control(server, "reset-auth", b"0")
    try:
        with pytest.raises(ValueError, match="not writable") as caught:
            remote.writable()
        with pytest.raises(PermissionError):
            remote.record(artifact())
    finally:
        control(server, "reset-auth", b"inf")
    assert one_line(caught, "s3://artifacts/team/runs: access denied")


def test_a_server_that_is_not_there_is_one_line_within_seconds(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0)  # botocore's back-off between its attempts
    store = open_store("s3://artifacts", tmp_path, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="not writable") as caught:
        store.writable()
    assert one_line(caught, "http://127.0.0.1:9")


def test_a_server_that_ignores_the_condition_is_refused(remote, monkeypatch):
    monkeypatch.setattr(remote.bucket.client, "put_object", lambda **_: None)
    with pytest.raises(ValueError, match="ignores If-None-Match"):
        remote.writable()


@pytest.mark.parametrize("url", ["s3://", "s3://key:secret@bucket/x", "s3://bucket/../x", "s3://bucket//x", "gs://b/x"])
def test_a_url_that_names_no_store_is_refused_without_being_repeated(tmp_path, url):
    with pytest.raises(ValueError) as caught:
        open_store(url, tmp_path)
    assert "secret" not in str(caught.value)


def test_a_plain_path_is_a_local_store_and_costs_no_boto3(tmp_path):
    script = (
        "import sys; from cluster.store.url import open_store; open_store(sys.argv[1], None); print('boto3' in sys.modules)"
    )
    assert python(script, tmp_path).communicate()[0] == "False\n"
