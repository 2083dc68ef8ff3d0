"""What a weight costs adds up to the files, and is what the format says it is."""

from __future__ import annotations

import pytest
import torch

from tasks.models.files.bits import bits_of
from tasks.models.files.compact import write_compact
from tasks.models.files.layout import MASKS
from tests.tasks.models.files.test_compact import pruned, quantized


@pytest.mark.parametrize("make", [pruned, lambda directory: quantized(directory, {"gptq": {"group_size": 8}})])
def test_the_parts_are_all_bytes_of_the_files(make, tmp_path):
    plain = make(tmp_path)
    files = [*plain.glob("model*.safetensors"), plain / MASKS]
    assert bits_of(plain).total == sum(file.stat().st_size for file in files)
    write_compact(plain, tmp_path / "compact")
    files = (tmp_path / "compact" / "sparse").glob("*.safetensors")
    assert bits_of(plain, tmp_path / "compact").total == sum(file.stat().st_size for file in files)


def test_four_bits_in_groups_under_two_of_four_are_what_one_counts_by_hand(tmp_path):
    """Four bits, a mask of one and a bfloat16 scale for every eight: 7. In compact form two bits and two thirds of one, and
    the same scales. Beside them every matrix has its shape, two int64."""
    sizes = {"hidden_size": 96, "intermediate_size": 192, "head_dim": 24}
    plain = quantized(tmp_path, {"gptq": {"group_size": 8}}, dtype=torch.bfloat16, **sizes)
    write_compact(plain, tmp_path / "compact")
    first, second = bits_of(plain), bits_of(plain, tmp_path / "compact")
    shapes = 14 * 128 / first.weights
    assert (first.each("values"), first.each("index"), first.each("scales")) == pytest.approx((4, 1, 2 + shapes))
    assert first.each() == pytest.approx(7 + shapes)
    assert (second.each("values"), second.each("scales")) == pytest.approx((2, 2 + shapes))
    assert second.each("index") == pytest.approx(2 / 3)
