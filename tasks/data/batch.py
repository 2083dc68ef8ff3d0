"""A batch of token sequences, and which of their tokens a model is to predict.

What training, replay and scoring pass on is this and not bare tokens, so that a prompt, or padding, can be part of what a
model reads without being part of what it learns or is judged by.

Shapes: B = sequences, T = tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch

IGNORED = -100  # the label of a token that is read and not predicted: what torch's cross-entropy leaves out by default


@dataclass(frozen=True)
class Batch:
    """``labels``, where given, are the tokens with IGNORED in place of those that do not count; without, all count.
    ``documents``, where given, number the documents of each row from 1 on, 0 is padding: no token of one sees another.
    ``likely`` and ``odds``, where given, are a teacher's: of each token but the first its likeliest candidates, best first, and
    the log-probabilities of these and, as the last, of all others together.

    Every tensor has a row per sequence. A sampler gives the batches of all ranks and steps labels, or none of them.
    """

    tokens: torch.Tensor
    labels: torch.Tensor | None = None
    documents: torch.Tensor | None = None
    likely: torch.Tensor | None = None
    odds: torch.Tensor | None = None

    @property
    def asked(self) -> dict[str, torch.Tensor]:
        """What a model is called with: the tokens, and, where documents share a row, the place of each token in its own.
        transformers lets no token attend across a place where these begin anew."""
        if self.documents is None or int(self.documents.max()) < 2:
            return {"input_ids": self.tokens}
        places_BT = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        begins_BT = torch.ones_like(self.tokens, dtype=torch.bool)
        begins_BT[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        starts_BT = places_BT.masked_fill(~begins_BT, 0).cummax(1).values
        return {"input_ids": self.tokens, "position_ids": places_BT - starts_BT}

    @property
    def following(self) -> torch.Tensor:
        """What comes after each token but the last, int64 [B, T - 1]: the targets of a prediction."""
        return (self.tokens if self.labels is None else self.labels)[:, 1:]

    @property
    def predicted(self) -> int:
        """How many tokens are to be predicted."""
        return self.following.numel() if self.labels is None else int(self.predicted_each.sum())

    @property
    def predicted_each(self) -> torch.Tensor:
        """How many of each sequence: int64 [B]."""
        return (self.following != IGNORED).sum(1)

    def mean(self, values_BT: torch.Tensor) -> torch.Tensor:
        """The mean of ``values_BT``, one of each following token, over those of each sequence that count: float [B]."""
        if self.labels is None:
            return values_BT.float().mean(1)
        counts_BT = self.following != IGNORED
        return (values_BT * counts_BT).sum(1) / counts_BT.sum(1).clamp_min(1)

    def to(self, device: str | torch.device) -> Batch:
        return self._each(lambda values: values.to(device))

    def split(self, rows: int) -> list[Batch]:
        """Batches of ``rows`` sequences, the last perhaps shorter."""
        return [self[start : start + rows] for start in range(0, len(self), rows)]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | torch.Tensor) -> Batch:
        return self._each(lambda values: values[rows])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(*[None if values is None else change(values) for values in self._tensors()])

    def _tensors(self) -> list[torch.Tensor | None]:
        return [getattr(self, field.name) for field in fields(self)]


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the sequences of several. Where some have labels, of the others every token counts."""
    tokens = torch.cat([batch.tokens for batch in batches])
    labels = [batch.tokens if batch.labels is None else batch.labels for batch in batches]
    documents = [batch.documents for batch in batches if batch.documents is not None]
    return Batch(
        tokens,
        torch.cat(labels) if any(batch.labels is not None for batch in batches) else None,
        torch.cat(documents) if len(documents) == len(batches) else None,
    )
