"""Tokenizers: trained on the corpus, or taken from a checkpoint. Either way a Hugging Face tokenizer directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: every text round-trips, no unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def count_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """How many rows an embedding needs for a tokenizer: its largest id and one. There may be fewer tokens, since added ones
    can leave holes."""
    return 1 + max([*tokenizer.get_vocab().values(), *tokenizer.added_tokens_decoder])


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local checkpoint or data directory."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of files that are no tokenizer's
        reason = " ".join(str(error).split()) or "it cannot be read"
        raise ValueError(f"no tokenizer in {directory}: {type(error).__name__}: {reason}") from error


def same_tokens(first: Path, second: Path) -> bool:
    """Whether two directories hold tokenizers that give the same tokens the same ids; False where the first has none."""
    if not (first / "tokenizer_config.json").exists() and not (first / "tokenizer.json").exists():
        return False
    return load_tokenizer(first).get_vocab() == load_tokenizer(second).get_vocab()
