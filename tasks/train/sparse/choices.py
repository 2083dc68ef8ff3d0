"""What N:M training remembers between forward passes: the masks of a step, how many changed, the numbers its kernels take.

None of it is waited for: a step that asked the device for a number would stand still until all before it is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

FLIPS_EVERY = 10  # steps between two measurements of the flip rate


class Choices:
    """The masks of one step where more than one forward pass goes through it, a byte per weight: chosen in the first."""

    def __init__(self) -> None:
        self.step, self.keeps = -1, dict[str, torch.Tensor]()

    def at(self, step: int, names: Iterable[str]) -> list[torch.Tensor] | None:
        if step != self.step:
            self.step, self.keeps = step, {}
        return [self.keeps[name] for name in names] if self.keeps.keys() >= set(names) else None

    def keep(self, step: int, keeps: Mapping[str, torch.Tensor]) -> None:
        self.step = step
        self.keeps |= keeps


class Numbers:
    """Numbers that kernels take, as tensors; made anew where they change, without waiting for the device."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[float, torch.Tensor]] = {}

    def of(self, what: str, number: float, device: torch.device) -> torch.Tensor:
        if self.known.get(what, (None,))[0] != number:
            self.known[what] = number, torch.full((), number, device=device)
        return self.known[what][1]


class Flips:
    """The share of weights whose mask differs from the step before, measured now and then."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.counts: dict[str, tuple[torch.Tensor, int]] = {}

    def due(self, step: int) -> bool:
        return (step + 1) % FLIPS_EVERY == 0 or step % FLIPS_EVERY == 0

    def see(self, step: int, keeps: Mapping[str, torch.Tensor]) -> None:
        if (step + 1) % FLIPS_EVERY == 0:
            self.before |= keeps
        elif step % FLIPS_EVERY == 0:
            for name in keeps.keys() & self.before.keys():
                self.counts[name] = ((self.before.pop(name) ^ keeps[name]).sum(), keeps[name].numel())

    def metrics(self) -> dict[str, float]:
        """Here the device is waited for, and not in the step that counts."""
        total = sum(numel for _, numel in self.counts.values())
        return {"flip_rate": sum(int(flipped) for flipped, _ in self.counts.values()) / total} if total else {}
