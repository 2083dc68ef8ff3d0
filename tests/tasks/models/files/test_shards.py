"""Tensors move from file to file as bytes."""

import hashlib

import torch
from safetensors.torch import load_file, save_file

from tasks.models.files.shards import Place, TensorFiles, header, splice


def test_splice_joins_tensors_of_several_files_of_memory_and_of_several_dtypes(tmp_path):
    first = {"a": torch.rand(3, 5), "b": torch.rand(7).bfloat16()}
    second = {"c": torch.arange(9, dtype=torch.uint8)}
    save_file(first, tmp_path / "1"), save_file(second, tmp_path / "2")
    held = {"d": torch.rand(4, 2).bfloat16().T, "e": torch.rand(()), "f": torch.empty(0, 3)}
    places = {name: Place(tmp_path / file, name) for name, file in (("c", "2"), ("b", "1"), ("a", "1"))}
    digest = splice({**places, **held}, tmp_path / "out", {"x": "y"})
    loaded, written = load_file(tmp_path / "out"), (tmp_path / "out").read_bytes()
    assert all(loaded[name].equal(value) for name, value in (first | second | held).items()) and len(loaded) == 6
    assert digest == hashlib.sha256(written).hexdigest() and header(tmp_path / "out")[1] == {"x": "y"}


def test_reading_gives_copies_that_outlive_the_file(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    tensor = files.read(["a"])["a"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "a" in files and tensor.tolist() == [1, 1, 1, 1]
