"""Tensors move from file to file as bytes."""

import torch
from safetensors.torch import load_file, save_file

from tasks.models.files.shards import Place, TensorFiles, splice


def test_splice_joins_tensors_of_several_files_and_dtypes(tmp_path):
    first = {"a": torch.rand(3, 5), "b": torch.rand(7).bfloat16()}
    second = {"c": torch.arange(9, dtype=torch.uint8)}
    save_file(first, tmp_path / "1"), save_file(second, tmp_path / "2")
    size = splice(
        {name: Place(tmp_path / file, name) for name, file in (("c", "2"), ("b", "1"), ("a", "1"))},
        tmp_path / "out",
        {"x": "y"},
    )
    loaded = load_file(tmp_path / "out")
    assert size == 60 + 14 + 9 and list(loaded) and all(loaded[k].equal(v) for k, v in (first | second).items())


def test_reading_gives_copies_that_outlive_the_file(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path)
    tensor = files.read(["a"])["a"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "a" in files and tensor.tolist() == [1, 1, 1, 1]
