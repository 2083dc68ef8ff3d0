"""A write is whole or absent: what fails before the rename leaves the file that was there, and no draft."""

import os

import pytest

from cluster.store import durable


def test_a_write_replaces_what_was_there(tmp_path):
    durable.write(tmp_path / "facts", b"old")
    durable.write(tmp_path / "facts", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["facts"] and (tmp_path / "facts").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file_and_says_path_bytes_and_why(tmp_path, monkeypatch):
    durable.write(tmp_path / "facts", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write 3 bytes: No space left on device: '.*facts'") as failed:
        durable.write(tmp_path / "facts", b"new")
    assert failed.value.errno == 28 and [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
