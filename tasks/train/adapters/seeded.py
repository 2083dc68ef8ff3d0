"""AdamW in which every entry has an age of its own, so that one can begin with moments that were gathered before it was born.

What is kept are the means that AdamW's bias correction would give, and not the sums it corrects: whoever sets the moments of
an entry needs to know no decay rate. With entries of one age it is AdamW.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

SEEDS = ("mean", "square", "age")


class SeededAdamW(torch.optim.Optimizer):
    """``mean`` and ``square`` are those of the gradients that an entry has seen, ``age`` counts them."""

    moments = SEEDS

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], betas: tuple[float, float], weight_decay: float, epsilon: float = 1e-6
    ) -> None:
        super().__init__(parameters, {"lr": 0.0, "betas": betas, "weight_decay": weight_decay, "eps": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for values in group["params"]:
                if values.grad is not None:
                    self._update(values, self.state[values], **group)

    @staticmethod
    def _update(values: torch.Tensor, state: dict[str, torch.Tensor], lr: float, betas, weight_decay, eps, **_: Any) -> None:
        state["step"] += 1
        age = state["age"].add_(1)
        for moment, seen, beta in (
            (state["mean"], values.grad, betas[0]),
            (state["square"], values.grad.square(), betas[1]),
        ):
            moment.add_((seen - moment) * (1 - beta) / (1 - beta**age))
        values.mul_(1 - lr * weight_decay).addcdiv_(state["mean"], state["square"].sqrt().add_(eps), value=-lr)
