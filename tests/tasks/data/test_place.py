"""A path may begin with a variable of the environment, and enters the key as it was written."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from tasks.data.place import AS_WRITTEN, Place, reading


class Named(BaseModel):
    path: Place


def named(path, folder=None) -> Named:
    return Named.model_validate({"path": path}, context=reading(folder))


def test_a_variable_at_its_beginning_is_the_folder_and_no_part_of_the_key(monkeypatch):
    monkeypatch.setenv("TEXTS", "/somewhere")
    found = named("$TEXTS/a/*.txt")
    assert found.path == "/somewhere/a/*.txt" and found.model_dump() == {"path": "/somewhere/a/*.txt"}
    assert found.model_dump(context=AS_WRITTEN) == {"path": "$TEXTS/a/*.txt"}


def test_a_variable_may_hold_a_relative_folder_or_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv("TEXTS", "here")
    assert named("$TEXTS/a.txt", tmp_path).path == str(tmp_path / "here" / "a.txt")
    with pytest.raises(ValueError, match="is relative"):
        named("$TEXTS/a.txt")
    monkeypatch.setenv("TEXTS", "s3://bucket")
    assert named("$TEXTS/a.txt").path == "s3://bucket/a.txt"


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("TEXTS", raising=False)
    with pytest.raises(ValueError, match=r"\$TEXTS/a.txt begins with a variable that is not set; set TEXTS to the folder"):
        named("$TEXTS/a.txt")


def test_a_dollar_elsewhere_is_part_of_the_name(tmp_path):
    assert named("/a/$TEXTS/b").path == "/a/$TEXTS/b" and named("$a.txt", tmp_path).path == str(tmp_path / "$a.txt")
