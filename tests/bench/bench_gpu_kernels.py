"""On a GPU: a feed-forward matrix through the 2:4 kernels that torch has (pruning to a transposable mask, forward and input
gradient sparse, weight gradient dense) against cuBLAS. Without a GPU there is nothing to measure.
"""

from __future__ import annotations

from tests.bench.bench_gpu_training import time_of
from tests.bench.measured import Measured


def measure() -> list[Measured]:
    import torch

    return semi_structured(torch.cuda.get_device_name()) if torch.cuda.is_available() else []


def semi_structured(card: str, tokens: int = 16_384, width: int = 4096, inner: int = 14_336) -> list[Measured]:
    """torch's 2:4 kernels against dense products of the same shapes, each cost by itself and as one training step."""
    import torch
    from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

    half = {"device": "cuda", "dtype": torch.bfloat16}
    weight_OI, input_TI = torch.randn(inner, width, **half), torch.randn(tokens, width, **half)
    gradient_TO = torch.randn(tokens, inner, **half)
    dense = {
        "forward": time_of(lambda: input_TI @ weight_OI.T, 20),
        "input gradient": time_of(lambda: gradient_TO @ weight_OI, 20),
        "weight gradient": time_of(lambda: gradient_TO.T @ input_TI, 20),
    }
    lines = []
    for kind in (SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS):
        label = kind.__name__.removeprefix("SparseSemiStructuredTensor").lower()
        try:
            sparse_OI = kind.prune_dense_static_sort(weight_OI)
            ours = {
                "prune": time_of(lambda kind=kind: kind.prune_dense_static_sort(weight_OI), 20),
                "forward": time_of(lambda sparse_OI=sparse_OI: torch.mm(sparse_OI, input_TI.T), 20),
                "input gradient": time_of(lambda sparse_OI=sparse_OI: torch.mm(sparse_OI.t(), gradient_TO.T), 20),
            }
        except (RuntimeError, NotImplementedError) as error:
            lines.append(Measured(f"gpu.2:4.{label}", float("nan"), None, f"refused by torch on {card}: {str(error)[:90]}"))
            continue
        whole = (sum(ours.values()) + dense["weight gradient"]) / sum(dense.values())
        parts = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in ours.items())
        against = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in dense.items())
        said = f"2:4 / dense training step of one {inner} x {width} matrix, {tokens} tokens: ms {parts} against {against}"
        lines.append(Measured(f"gpu.2:4.{label}", whole, None, said))
    return lines
