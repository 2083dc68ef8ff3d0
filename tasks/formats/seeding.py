"""Random generators seeded by a seed and a name, so that draws do not depend on the order of work."""

from __future__ import annotations

from zlib import crc32

import torch


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A generator on the CPU, seeded by the seed and what it is for."""
    return torch.Generator().manual_seed(crc32("/".join(map(str, (seed, *names))).encode()))
