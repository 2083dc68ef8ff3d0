"""A teacher's answers written down once, so that students read them where each would have asked the teacher at every step.

What a teacher says of a row of the training text depends on the row alone, not on when it is seen: answers are kept by the
number of the row, and students of any order of them read the same files. Of each token but the first its ``k`` likeliest
candidates are kept, best first, and in float16 their log-probabilities at a temperature and that of all others together: a
probability p is off by at most p |ln p| / 2048, so a divergence by at most the entropy / 2048 (times T^2).

Shapes: B = rows, T = tokens of a row, N = predicted tokens, V = vocabulary, K = tokens kept, L = K, and one more for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tasks.train.head import Head

if TYPE_CHECKING:
    from torch import nn

    from tasks.data.batch import Batch
    from tasks.data.tokens import Sampler, Split

DESCRIPTION, SHARD_BYTES = "logits.json", 1 << 28


def bytes_per_token(k: int, vocabulary: int) -> int:
    """On disk, of a predicted token: an id and a log-probability of each candidate, and one of the rest."""
    kept = min(k, vocabulary)
    return kept * (_ids(vocabulary).itemsize + 2) + 2 * (kept < vocabulary)


def _ids(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


@dataclass(frozen=True)
class Description:
    """What was asked: ``rows`` of ``sequences`` in the split were answered; ``together`` says whether documents share rows."""

    k: int
    temperature: float
    length: int
    vocabulary: int
    sequences: int
    rows: int
    together: bool


@torch.no_grad()
def answer(teacher: nn.Module, batch: Batch, k: int, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(the ``k`` likeliest candidates of each token but the first [B, T - 1, K], their log-probabilities and, unless these are
    all, that of the rest [B, T - 1, L]), from the logits of ``chunk`` tokens at a time."""
    head = Head(teacher)
    with head.listening():
        teacher(**batch.asked, use_cache=False)
    assert head.states_BTD is not None, "it has listened"
    tokens, odds = [], []
    for states_ND in head.states_BTD[:, :-1].flatten(0, 1).split(chunk):
        logs_NV = (head.logits(states_ND).float() / temperature).log_softmax(-1)
        best = logs_NV.topk(min(k, logs_NV.shape[-1]), -1)
        rest_NV = logs_NV.scatter(-1, best.indices, -torch.inf)
        rest = [rest_NV.logsumexp(-1, keepdim=True)] if best.indices.shape[-1] < logs_NV.shape[-1] else []
        tokens.append(best.indices)
        odds.append(torch.cat([best.values, *rest], -1).half())
    rows = len(batch)
    return torch.cat(tokens).unflatten(0, (rows, -1)), torch.cat(odds).unflatten(0, (rows, -1))


def write(
    directory: Path,
    description: Description,
    teacher: nn.Module,
    text: Split,
    order: Sequence[int],
    logits_bytes: int,
    progress: Callable[[int], None],
) -> int:
    """What a teacher says of the rows in ``order``, in shards of safetensors; the bytes they take."""
    from safetensors.torch import save_file

    length, vocabulary = description.length, description.vocabulary
    chunk = max(1, logits_bytes // (4 * vocabulary))
    together, device = max(1, chunk // length), next(teacher.parameters()).device
    per_shard = max(together, SHARD_BYTES // (bytes_per_token(description.k, vocabulary) * (length - 1)))
    for number, first in enumerate(range(0, len(order), per_shard)):
        said, mine = [], order[first : first + per_shard]
        for start in range(0, len(mine), together):
            batch = text.batch(mine[start : start + together], length).to(device)
            tokens, odds = answer(teacher, batch, description.k, description.temperature, chunk)
            said.append((tokens.cpu().to(_ids(vocabulary)), odds.cpu()))
            progress(first + min(start + together, len(mine)))
        tensors = {name: torch.cat(values) for name, values in zip(("tokens", "odds"), zip(*said, strict=True), strict=True)}
        save_file({"rows": torch.tensor(mine), **tensors}, directory / f"logits-{number:05d}.safetensors")
    (directory / DESCRIPTION).write_text(json.dumps(asdict(description)))
    return sum(file.stat().st_size for file in directory.glob("logits-*.safetensors"))


@dataclass(frozen=True)
class Written:
    """The files of a teach stage."""

    directory: Path

    @cached_property
    def description(self) -> Description:
        return Description(**json.loads((self.directory / DESCRIPTION).read_text()))

    @cached_property
    def _shards(self) -> list[Any]:
        from safetensors import safe_open

        return [safe_open(file, "pt") for file in sorted(self.directory.glob("logits-*.safetensors"))]

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """Shard and place in it, by the number of a row."""
        numbered = [shard.get_tensor("rows").tolist() for shard in self._shards]
        return {row: (shard, place) for shard, rows in enumerate(numbered) for place, row in enumerate(rows)}

    def require_vocabulary(self, vocabulary: int) -> None:
        if vocabulary != (theirs := self.description.vocabulary):
            raise ValueError(
                f"the teacher tells the odds of {theirs} tokens, the model of {vocabulary}; teach with the model's vocabulary"
            )

    def read(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some rows (candidates [B, T - 1, K], log-probabilities [B, T - 1, L])."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for row in map(int, indices):
            if row not in self._places:
                raise ValueError(
                    f"no logits were written of row {row} of the training text; leave tokens out of the teach stage"
                )
            shard, place = self._places[row]
            tokens, odds = (self._shards[shard].get_slice(name)[place : place + 1] for name in ("tokens", "odds"))
            found.append((tokens.to(torch.int32), odds))
        tokens, odds = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(odds)

    def shares_rows(self, apart: bool) -> bool:
        """Whether documents share rows, as they did for the teacher. Raises ValueError where the student cannot keep them
        ``apart`` then."""
        if self.description.together and not apart:
            raise ValueError(
                "the logits are of documents that share rows, and this model would let those see each other; "
                "leave precomputed out"
            )
        return self.description.together

    def beside(self, drawn: Sampler) -> Sampler:
        """The same text in batches that carry the answers. Raises ValueError where they are of another."""
        said, ours = self.description, (drawn.length, drawn.tokens.sequences(drawn.length))
        if ours != (said.length, said.sequences):
            raise ValueError(
                f"the training text is {ours[1]} rows of {ours[0]} tokens, and the logits are of {said.sequences} rows of "
                f"{said.length}; teach on this text"
            )
        return replace(drawn, tokens=Answered(drawn.tokens, self))


@dataclass(frozen=True)
class Answered:
    """A split whose batches carry what the teacher said of them."""

    text: Split
    written: Written

    @property
    def split(self) -> str:
        return self.text.split

    @property
    def total(self) -> int:
        return self.text.total

    def sequences(self, length: int) -> int:
        return self.text.sequences(length)

    def batch(self, indices: Iterable[int], length: int) -> Batch:
        numbers = np.fromiter(indices, np.int64).tolist()
        likely, odds = self.written.read(numbers)
        return replace(self.text.batch(numbers, length), likely=likely, odds=odds)
