"""A causal LM's forward pass cut before its head, so that logits need not be there for all tokens at once.

What owns the decoder blocks is the body; what the model does with the body's last hidden states, projection, scale and
softcap as the architecture has them, is its head. Nothing of either is written anew: while a :class:`Head` listens, the model
runs as ever, but hands its head no token; and to make logits of some hidden states it runs again with a body that says them.

Shapes: B = sequences, T = tokens, N = some tokens, D = hidden features, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tasks.models.find.linears import decoder_blocks


class Head:
    """The head of a model, for the hidden states of one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        path = decoder_blocks(model)[0].rpartition(".")[0]
        owner, _, self._child = path.rpartition(".")
        self._owner, self._body = model.get_submodule(owner), model.get_submodule(path)
        self.said: Any = None
        self.states_BTD: torch.Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile a forward pass leaves the last hidden states here, and its logits are those of no token."""
        with self._body.register_forward_hook(self._keep):
            yield

    def _keep(self, module: nn.Module, given: Any, said: Any) -> Any:
        self.said, self.states_BTD = said, said.last_hidden_state
        kind = self.states_BTD.device.type
        self._autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return self._saying(self.states_BTD[:, :0])

    def _saying(self, states_BTD: torch.Tensor) -> Any:
        return type(self.said)(**{**self.said, "last_hidden_state": states_BTD})

    def logits(self, states_ND: torch.Tensor) -> torch.Tensor:
        """[N, V], in whatever type the model gives them."""
        modules, states_BTD = self._owner._modules, states_ND[None]
        modules[self._child] = _Saying(self._saying(states_BTD))
        try:
            with self.precision():
                return self.model.forward(inputs_embeds=states_BTD, use_cache=False).logits[0]
        finally:
            modules[self._child] = self._body

    def precision(self) -> torch.autocast:
        """What the forward pass computed in."""
        return torch.autocast(*self._autocast)

    def parameters(self) -> list[nn.Parameter]:
        """What the head learns: parameters outside the body, and the projection, which may be the body's embedding too."""
        body = {id(parameter) for parameter in self._body.parameters()}
        outside = [parameter for parameter in self.model.parameters() if id(parameter) not in body]
        projection = self.model.get_output_embeddings()  # type: ignore[operator]
        tied = [] if projection is None else [parameter for parameter in projection.parameters() if id(parameter) in body]
        return [parameter for parameter in (*outside, *tied) if parameter.requires_grad]


class _Saying(nn.Module):
    """In place of a body: says what it is told to."""

    def __init__(self, said: Any) -> None:
        super().__init__()
        self.said = said

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.said
