"""Whether a model keeps documents that share a row apart: asked of a model, not of a list of architectures.

transformers lets no token attend across a place where positions begin anew, in the architectures that ask it for their masks.
Others, with masks or states of their own, would let a document read the one before it; theirs get a row each. Who is asked is a
random model of the same config with one layer of each kind and few words: a model that trains may have no weights in this
process, and weights do not decide it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.data.batch import Batch
from tasks.data.rows import reading, tasks_in
from tasks.data.tokens import Sampler
from tasks.models.build.surgery import FIELD
from tasks.models.cut import Cut
from tasks.models.files.recut import LAST, config_of
from tasks.train.written import Written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedModel

TOLERANCE = 1e-3  # of the logits' spread; a document that is read changes them by about as much as they spread
WORDS = 64
LEFT_OUT = (FIELD, "quantization_config")  # what of a config says how weights are held


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
    spread = alone_TV.std()
    return bool(spread > 0) and bool((together_TV - alone_TV).abs().max() <= TOLERANCE * spread)


def alike(model: PreTrainedModel) -> PreTrainedModel:
    """A random model of a model's config, in float32 on the CPU: one layer of each kind, few words. Others draw at random what
    they would have drawn without it."""
    from tasks.models.build.building import builder

    text = model.config.get_text_config(decoder=True)
    depth = text.num_hidden_layers
    own = depth - (getattr(text, LAST[0], None) or 0)  # blocks that read the keys and values of others come last
    types = getattr(text, "layer_types", None) or ["all"] * depth
    kinds = [(kind, index < own) for index, kind in enumerate(types)]
    first = tuple(kinds.index(kind) for kind in dict.fromkeys(kinds))
    given = config_of(model.config.to_dict(), model, Cut(blocks=first))
    config = type(model.config).from_dict({name: value for name, value in given.items() if name not in LEFT_OUT})
    small = config.get_text_config(decoder=True)
    small.vocab_size, small.pad_token_id = WORDS, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = builder(config).from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return made


def may_share_rows(model: PreTrainedModel, data: Path) -> bool:
    """Asked before an engine takes the model; of a training text without tasks nothing is asked."""
    return tasks_in(data, "train") and keeps_apart(alike(model))


def sampler(
    inputs: Mapping[str, Path],
    length: int,
    batch: int,
    seed: int,
    apart: bool,
    teacher: PreTrainedModel | None,
    note: Callable[[str], None],
) -> Sampler:
    """The training text in batches, with what was written down of a teacher beside it where that is an input. Tasks share rows
    where the model (``apart``) and its teacher keep them apart; else each has a row of its own, and people are told."""
    data, written = inputs["data"], Written(inputs["logits"]) if "logits" in inputs else None
    if not tasks_in(data, "train"):
        plain = Sampler(reading(data, "train", False), length, batch, seed)
        return written.beside(plain) if written else plain
    together = written.shares_rows(apart) if written else apart and (teacher is None or keeps_apart(alike(teacher)))
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
    return written.beside(drawn) if written else drawn
