"""Random draws seeded by a seed and a name, so that they do not depend on the order of work."""

from __future__ import annotations

from zlib import crc32

import torch


def generator_for(seed: int, *names: object) -> torch.Generator:
    """A generator on the CPU, seeded by the seed and what it is for."""
    return torch.Generator().manual_seed(seed_of(seed, *names))


def seed_of(seed: int, *names: object) -> int:
    """Another seed for what the names are for."""
    return crc32("/".join(map(str, (seed, *names))).encode())
