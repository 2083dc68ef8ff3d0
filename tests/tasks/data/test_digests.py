"""A file is read once and its sha256 kept, until anything about the file says that it may be another."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.data import digests
from tasks.data.digests import WORTH_KEEPING, Digests

CONTENT = bytes(WORTH_KEEPING)


@contextmanager
def kept_from_writing(*folders: Path) -> Iterator[None]:
    """Folders that nobody may write to: not even root, who has another name meanwhile."""
    for folder in folders:
        folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o755)


def test_in_a_home_that_cannot_be_written_files_are_read_once_a_process_and_what_is_kept_counts(reads):
    with tempfile.TemporaryDirectory() as place:  # pytest's own are closed to others
        home, one, other = Path(place) / "home", Path(place) / "one", Path(place) / "other"
        Path(place).chmod(0o755)
        home.mkdir()
        one.write_bytes(CONTENT)
        other.write_bytes(CONTENT)
        Digests(home / "digests").of(one)
        (home / "digests").chmod(0o755)
        reads.clear()
        with kept_from_writing(home, home / "digests"):
            for folder in (home / "digests", home / "none" / "digests"):
                known = Digests(folder)
                assert {known.of(path) for path in (one, other, other)} == {hashlib.sha256(CONTENT).digest()}
        assert reads == ["other", "one", "other"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed; nothing counts as written just now."""
    seen, real = [], hashlib.file_digest

    def file_digest(file, name):
        seen.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    monkeypatch.setattr(digests, "SETTLED", -1)
    return seen


def test_a_file_is_read_once_in_a_process_and_by_those_that_follow(tmp_path, reads):
    (tmp_path / "a").write_bytes(CONTENT)
    first = Digests(tmp_path / "kept")
    found = {first.of(tmp_path / "a") for _ in range(12)} | {Digests(tmp_path / "kept").of(tmp_path / "a")}
    assert found == {hashlib.sha256(CONTENT).digest()} and reads == ["a"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_of_the_same_name_size_and_time_is_another_once_it_was_written_again(kept, tmp_path, reads):
    known = Digests(tmp_path / "kept" if kept else None)
    (tmp_path / "a").write_bytes(CONTENT)
    before, times = known.of(tmp_path / "a"), (tmp_path / "a").stat()
    time.sleep(0.02)  # more than a tick of the file system's clock
    (tmp_path / "a").write_bytes(b"x" + CONTENT[1:])
    os.utime(tmp_path / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known.of(tmp_path / "a") != before
    (tmp_path / "b").write_bytes(CONTENT)
    os.utime(tmp_path / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "b").replace(tmp_path / "a")
    assert known.of(tmp_path / "a") == before


def test_what_was_written_just_now_is_not_kept(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 60 * 10**9)
    (tmp_path / "a").write_bytes(CONTENT)
    known = Digests(tmp_path / "kept")
    assert known.of(tmp_path / "a") == known.of(tmp_path / "a") and reads == ["a", "a"]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(CONTENT)
    real = hashlib.file_digest

    def grow(file, name):
        with (tmp_path / "a").open("ab") as more:
            more.write(b"more")
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", grow)
    with pytest.raises(ValueError, match="a changed while it was read"):
        Digests().of(tmp_path / "a")


def _hash(folder: Path, file: Path) -> bytes:
    digests.SETTLED = -1
    return Digests(folder).of(file)


def test_several_processes_may_ask_at_once(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_hash, [(tmp_path / "kept", tmp_path / "a")] * 16)
    assert set(found) == {hashlib.sha256(CONTENT).digest()}
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1 and not list((tmp_path / "kept").glob("*.half"))
