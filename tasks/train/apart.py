"""Whether a model keeps documents that share a row apart: asked of the model itself, not of a list of architectures.

transformers lets no token attend across a place where positions begin anew, in the architectures that ask it for their masks.
Others, with masks or states of their own, would let a document read the one before it; theirs get a row each.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.data.batch import Batch
from tasks.data.rows import reading, tasks_in
from tasks.data.tokens import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # of the logits' spread, in float32; what half precision rounds off is a hundred times as much


@torch.no_grad()
def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether the second of two documents in a row is answered as if it were alone. The model is left as it was."""
    was, device = model.training, next(model.parameters()).device
    first, second = torch.arange(1, 6, device=device), torch.arange(7, 13, device=device)
    shared = Batch(torch.cat([first, second])[None], documents=torch.tensor([[1] * 5 + [2] * 6], device=device))
    model.eval()
    try:
        alone_TV = model(input_ids=second[None], use_cache=False).logits[0].float()
        together_TV = model(**shared.asked, use_cache=False).logits[0, len(first) :].float()
    except TypeError:  # it takes no positions
        return False
    finally:
        model.train(was)
    exact = next(model.parameters()).dtype == torch.float32
    return bool((together_TV - alone_TV).abs().max() <= TOLERANCE * (1 if exact else 100) * alone_TV.std())


def may_share_rows(model: PreTrainedModel, data: Path) -> bool:
    """Asked before an engine takes the model; of a training text without tasks nothing is asked."""
    return tasks_in(data, "train") and keeps_apart(model)


def sampler(
    data: Path, length: int, batch: int, seed: int, apart: bool, teacher: PreTrainedModel | None, note: Callable[[str], None]
) -> Sampler:
    """The training text in batches. Tasks share rows where the model (``apart``) and its teacher keep them apart; else each
    has a row of its own, and people are told."""
    if not tasks_in(data, "train"):
        return Sampler(reading(data, "train", False), length, batch, seed)
    together = apart and (teacher is None or keeps_apart(teacher))
    drawn = Sampler(reading(data, "train", together), length, batch, seed)
    rows = drawn.tokens.sequences(length)
    how = (
        "documents share rows, and none sees another"
        if together
        else (
            "each document has a row of its own, filled up with padding, as the model would let those in a row see each other"
        )
    )
    note(f"tasks: {rows} rows of {length} tokens; {how}")
    return drawn
