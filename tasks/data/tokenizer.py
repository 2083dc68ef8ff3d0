"""Tokenizers: trained on the corpus, or taken from a checkpoint. Either way a Hugging Face tokenizer directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = "chat_template.jinja"  # as transformers calls it; beside tokens, the one that wrote out the training text


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


def has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer_config.json").exists() or (directory / "tokenizer.json").exists()


def same_tokens(first: Path, second: Path) -> bool:
    """Whether two directories hold tokenizers that give the same tokens the same ids; False where the first has none."""
    return has_tokenizer(first) and load_tokenizer(first).get_vocab() == load_tokenizer(second).get_vocab()


def take_template(data: Path, model: Path) -> None:
    """Have a model's tokenizer write chats out by the template that its model learned them by, if it learned some, so that
    whoever runs the model asks it as it was taught. Its other files stay."""
    if not (data / CHAT_TEMPLATE).exists():
        return
    template, own = (data / CHAT_TEMPLATE).read_text(), load_tokenizer(model).chat_template
    if (own.get("default") if isinstance(own, dict) else own) == template:
        return
    (model / CHAT_TEMPLATE).write_text(template)
    config = model / "tokenizer_config.json"
    told = json.loads(config.read_text()) if config.exists() else {}
    if told.pop("chat_template", None):  # where one is written in older directories
        config.write_text(json.dumps(told, indent=2))


@dataclass(frozen=True)
class Meaning:
    """What ids stand for: by the tokenizer in a ``directory``, or by one that is yet to be learned, from what ``learned``
    says."""

    directory: Path | None = None
    learned: str = ""

    @classmethod
    def of(cls, directory: Path) -> Meaning | None:
        """That of a directory of a model or of a tokenizer; None where it has no tokenizer."""
        return cls(directory) if has_tokenizer(directory) else None

    @cached_property
    def tokens(self) -> dict[int, str]:
        assert self.directory is not None, "it is there"
        return {id: token for token, id in load_tokenizer(self.directory).get_vocab().items()}

    def clash(self, other: Meaning) -> str:
        """How the two give ids other meanings, as far as it can be known; empty where they do not. One may know ids that the
        other does not: tokens that were added to it."""
        if self.learned and other.learned:
            return "they are learned from different texts" if self.learned != other.learned else ""
        if not (self.directory and other.directory) or self._same_file(other):
            return ""
        odd = (id for id in sorted(self.tokens.keys() & other.tokens.keys()) if self.tokens[id] != other.tokens[id])
        return next((f"id {id} is {self.tokens[id]!r} and {other.tokens[id]!r}" for id in odd), "")

    def _same_file(self, other: Meaning) -> bool:
        """Whether the files show it without being understood: stages copy them."""
        files = [directory / "tokenizer.json" for directory in (self.directory, other.directory) if directory]
        return self.directory == other.directory or (
            all(file.exists() for file in files) and files[0].read_bytes() == files[1].read_bytes()
        )
