"""Tensors are written to their places as they come, and the files are those of writing them all at once."""

import random

import pytest
import torch
from huggingface_hub import save_torch_state_dict

from tasks.models.files.shards import TensorFiles
from tasks.models.files.slots import _DTYPES, Kind, Slots


@pytest.mark.parametrize("largest", [10**9, 200])
def test_the_bytes_are_those_of_writing_all_at_once_in_whatever_order_they_come(largest, tmp_path):
    draw = random.Random(0)
    tensors = {
        f"{number}.ä{draw.random()}": torch.randn(draw.randint(1, 5), 3, draw.randint(1, 4)).mul(9).to(dtype)
        for number, dtype in enumerate([*_DTYPES, torch.float32, torch.bfloat16, torch.float32])
    } | {"number": torch.tensor(1.5)}
    for name in ("once", "slots"):
        (tmp_path / name).mkdir()
    save_torch_state_dict(tensors, tmp_path / "once", max_shard_size=largest)
    slots = Slots({name: Kind(each.dtype, tuple(each.shape)) for name, each in tensors.items()}, tmp_path / "slots", largest)
    for name in sorted(tensors, key=lambda _: draw.random()):
        slots.put(name, tensors[name].double() if tensors[name].dtype == torch.float32 else tensors[name])
    written = {path.name: path.read_bytes() for path in (tmp_path / "slots").glob("*.safetensors")}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "once").glob("*.safetensors")}
    assert (len(written) > 1) == (largest < 10**9) and set(TensorFiles(tmp_path / "slots")) == set(tensors)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    slots = Slots({"a": Kind(torch.float32, (2, 3))}, tmp_path)
    with pytest.raises(AssertionError, match=r"a is \[3, 2\], and \[2, 3\] was foreseen"):
        slots.put("a", torch.zeros(3, 2))
