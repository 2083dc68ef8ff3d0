"""What is said to a worker arrives as it was: values, tensors in every dtype, and which of them are one."""

from __future__ import annotations

import torch

from cluster.packing import pack, unpack
from cluster.ray.targets import unwrap, wrap

SENT = {
    "weights": torch.randn(3, 4).to(torch.bfloat16),
    "columns": torch.arange(12.0).view(3, 4).T,
    "keep": torch.tensor([True, False]),
    "none": torch.empty(0, 5),
    "one": torch.tensor(7),
    "sums": torch.nn.Parameter(torch.rand(2, dtype=torch.float64)),
}


def the_same(found, sent):
    return found.keys() == sent.keys() and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in sent.items()
    )


def test_only_what_is_no_tensor_is_packed_and_each_tensor_travels_once():
    content, tensors = pack([SENT, SENT["columns"], "said"])
    assert len(tensors) == len(SENT) and len(content) < 2000
    travelling = iter(tensors)
    values, again, said = unpack(content, lambda described: next(travelling))
    assert the_same(values, SENT) and again is values["columns"] and said == "said"


def test_what_goes_through_ray_is_bytes_and_what_comes_out_is_a_copy_of_its_own():
    content, arrays = wrap((SENT, SENT["weights"]))
    assert isinstance(content, bytes) and {str(array.dtype) for array in arrays} == {"uint8"}
    for array in arrays:
        array.flags.writeable = False  # as Ray hands them out
    values, weights = unwrap((content, arrays))
    assert the_same(values, SENT) and weights is values["weights"]
    values["weights"].zero_()
    assert SENT["weights"].any()
