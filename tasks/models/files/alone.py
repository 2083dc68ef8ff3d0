"""compressed-tensors called by one process alone, and without bars of its own.

Where a process group is there (``torchrun``), the library shares the packing of modules out over the ranks and waits for all
of them. A stage that is not distributed runs on rank 0 only, which would wait forever; and each rank that reads a quantized
teacher reads all of it. Its bars overrule ``TQDM_DISABLE``, and stages tell their own progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def alone() -> Iterator[None]:
    from compressed_tensors.offload.utils import as_single_threaded

    _without_bars()
    with as_single_threaded():
        yield


def _without_bars() -> None:
    """For good, as models that are loaded here are unpacked at their first forward pass, whenever that is."""
    from compressed_tensors.offload import dispatch
    from compressed_tensors.quantization.lifecycle import apply
    from tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: object, **fields: object) -> None:
            super().__init__(*args, **{**fields, "disable": True})

    for module in (apply, dispatch):
        vars(module)["tqdm"] = Silent
