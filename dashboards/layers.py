"""Numbers of single matrices, sorted into a grid: the kinds of matrices, and the decoder blocks they stand in."""

from __future__ import annotations

import re
from collections.abc import Mapping

LAYERS = "layers.json"  # in the run of a stage


def cells(shares: Mapping[str, float]) -> dict[tuple[str, int], float]:
    """By kind and block; a name without a block has no place in the grid."""
    found = {}
    for name, share in shares.items():
        if place := re.search(r"\.(\d+)(?:\.(.+?))?(?:\.weight)?$", name):
            found[place[2] or "block", int(place[1])] = share
    return found
