"""Contamination of the held-out text: documents that stand in two splits, word for word.

A held-out document that was trained or calibrated on flatters every number measured on it. Digests of 8 bytes a document
tell, without keeping any text: a million documents take 8 MB, too few for digests to meet by chance.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator

import numpy as np


class Overlap:
    """The documents of each split, by digest."""

    def __init__(self) -> None:
        self.digests = {split: array("Q") for split in ("train", "calibration", "heldout")}

    def see(self, split: str, text: str) -> None:
        digest = hashlib.blake2b(text.strip().encode(errors="surrogatepass"), digest_size=8).digest()
        self.digests[split].append(int.from_bytes(digest, "little"))

    def remarks(self) -> Iterator[str]:
        """A line for each text that shares documents with the held-out one."""
        found = {split: np.array(digests, dtype=np.uint64) for split, digests in self.digests.items()}
        for split in ("train", "calibration"):
            if count := int(np.isin(found["heldout"], found[split]).sum()):
                yield (
                    f"{count} of {len(found['heldout'])} held-out documents stand in the {split} text too, word for word; "
                    "what is measured on them flatters"
                )
