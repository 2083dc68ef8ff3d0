"""Texts that models are judged on beside the held-out split: a corpus, and how its documents become tokens.

Numbers compare only where the same text was cut the same way. The papers' protocol for WikiText-2 joins the documents with a
blank line, tokenizes the whole once by the tokenizer's own rule (a begin-of-text token where it adds one), and cuts windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from tasks.data.completions import Lines
from tasks.data.corpora import AnyCorpus, Roles, Sequence
from tasks.data.corpus import Corpus
from tasks.data.digests import Digests
from tasks.data.tokens import Packed, Tokens, heldout_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Ids(Packed):
    """A text as token ids; ``plain`` of them, those that are not special, stand for its ``bytes`` of UTF-8."""

    shards: list[np.ndarray]
    plain: int
    bytes: int


class Text(BaseModel):
    """A corpus, or ``{corpus: CORPUS, join: "\\n\\n"}``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    corpus: AnyCorpus
    """The text: a corpus or a path."""
    join: str | None = None
    """What is put between documents to make one text of them, tokenized by the tokenizer's own rule about special tokens.
    Unless given, each document is tokenized by itself, without special tokens, and an end-of-text token follows it."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, spec: Any) -> Any:
        return spec if isinstance(spec, dict) and "corpus" in spec else {"corpus": spec}

    @field_validator("corpus")
    @classmethod
    def _plain(cls, corpus: Corpus) -> Corpus:
        if isinstance(corpus, Sequence | Roles):
            raise ValueError("one text is needed, not a sequence and not texts by role")
        if isinstance(corpus, Lines):
            raise ValueError(
                "a text is read as it stands, and tasks are judged on what they ask for; make them the held-out text"
            )
        return corpus

    def fingerprint(self, digests: Digests | None = None) -> str:
        return self.corpus.fingerprint(digests)

    def describe(self) -> str:
        return self.corpus.describe()

    def encode(self, tokenizer: PreTrainedTokenizerFast) -> Ids:
        """Raises ValueError where there is no text in it."""
        texts = [document.text for document in self.corpus.documents() if document.text.strip() or self.join is not None]
        size = sum(len(text.encode()) for text in texts)
        if not size:
            raise ValueError(f"text {self.describe()}: there is no text in it")
        if self.join is not None:
            whole = self.join.join(texts)
            ids = tokenizer(whole, verbose=False).input_ids
            plain = len(ids) - tokenizer.num_special_tokens_to_add()
            return Ids([np.asarray(ids)], plain, len(whole.encode()))
        pieces = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
        ended = [id for piece in pieces for id in (*piece, tokenizer.eos_token_id)]
        return Ids([np.asarray(ended)], sum(map(len, pieces)), size)


def bytes_per_token(data: Path) -> float:
    """Of the held-out split of a prepare artifact, its end-of-text tokens left out."""
    texts = [document["text"] for document in heldout_documents(data)]
    return sum(len(text.encode()) for text in texts) / max(1, Tokens(data, "heldout").total - len(texts))
