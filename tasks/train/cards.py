"""The GPUs that a training is planned for, by name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU: dense bf16 operations and bytes a second by its data sheet, and the bytes that torch finds on it."""

    name: str
    flops: float
    bandwidth: float
    memory: float


CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 2.04e12, 79 * 2.0**30),
        Card("H100", 989e12, 3.35e12, 85_017_493_504),
        Card("H200", 989e12, 4.8e12, 139 * 2.0**30),
    )
}
