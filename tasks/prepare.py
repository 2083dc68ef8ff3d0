"""Prepare: text becomes a tokenizer and packed token shards, split by document into train, calibration and held-out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.data.corpus import SPLITS, AnyCorpus, Document, Split, split_of
from tasks.data.digests import Digests
from tasks.models.intake import check_tokenizer
from tasks.models.source import Checkpoint
from tasks.stage import Context, Kind, Stage

LEAST_DOCUMENTS = 20        # so that every split gets one at the default shares


class Tokenizer(BaseModel):
    """``{train: VOCABULARY}`` trains a byte-level BPE on the train split; ``{checkpoint: PATH}`` takes an existing one,
    ``earlier`` that of the prepare stage this one comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int | None = Field(None, ge=257, le=1 << 20)
    checkpoint: Checkpoint | None = None
    earlier: bool = False

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, spec: Any) -> Any:
        return {"earlier": True} if spec == "earlier" else spec

    @model_validator(mode="after")
    def _one_kind(self) -> Tokenizer:
        if sum([self.train is not None, self.checkpoint is not None, self.earlier]) != 1:
            raise ValueError("a tokenizer names either train (a vocabulary size) or checkpoint, or is 'earlier'")
        return self


    def ids(self) -> int | None:
        """How many ids it needs, the largest and one; None where it lies elsewhere, or is another stage's."""
        from tasks.data.tokenizer import count_ids, load_tokenizer

        if self.checkpoint and self.checkpoint.local:
            return count_ids(load_tokenizer(self.checkpoint.local))
        return self.train


class Prepare(Stage):
    version: ClassVar[int] = 2
    needs: ClassVar[dict[str, Kind]] = {"tokenizer": "tokens"}
    yields: ClassVar[Kind] = "tokens"

    corpus: AnyCorpus
    tokenizer: Tokenizer
    heldout: float = Field(0.05, gt=0, lt=0.5)
    calibration: float = Field(0.05, gt=0, lt=0.5)

    @property
    def label(self) -> str:
        return type(self.corpus).__name__.lower()

    def roles(self) -> dict[str, Kind]:
        return dict(self.needs) if self.tokenizer.earlier else {}

    def sources(self) -> dict[str, Any]:
        return {"corpus": self.corpus} | ({"tokenizer": self.tokenizer.checkpoint} if self.tokenizer.checkpoint else {})

    def inspect(self) -> None:
        if self.tokenizer.checkpoint and (directory := self.tokenizer.checkpoint.local):
            check_tokenizer(directory)

    def fingerprints(self, digests: Digests | None = None) -> dict[str, Any]:
        fingerprints = super().fingerprints(digests)
        if self.corpus.at_hand:
            found = (document for document in self.corpus.documents() if document.text.strip())
            if (count := sum(1 for _ in islice(found, LEAST_DOCUMENTS))) < LEAST_DOCUMENTS:
                raise ValueError(f"corpus is too small: {count} documents with text, three splits need {LEAST_DOCUMENTS}")
        return fingerprints

    def run(self, context: Context) -> dict[str, float]:
        from tasks.data.tokenizer import load_tokenizer, train_tokenizer

        if self.tokenizer.train:
            texts = (document.text for _, document in self._dealt("train"))
            tokenizer = train_tokenizer(texts, self.tokenizer.train)
        elif self.tokenizer.earlier:
            tokenizer = load_tokenizer(context.inputs["tokenizer"] / "tokenizer")
        else:
            tokenizer = load_tokenizer(self.tokenizer.checkpoint.fetch(context.scratch))
        tokenizer.save_pretrained(context.output / "tokenizer")
        return self._encode(tokenizer, context)

    def _dealt(self, *splits: Split) -> Iterable[tuple[str, Document]]:
        """(split, document); of a sequence of tasks the split carries the task's name too: ``train-first``."""
        for task, corpus in self.corpus.parts().items():
            for index, document in enumerate(corpus.documents()):
                split = split_of(index, self.heldout, self.calibration)
                if split in splits or not splits:
                    yield (f"{split}-{task}" if task else split), document

    def _encode(self, tokenizer: Any, context: Context) -> dict[str, float]:
        from tasks.data.tokenizer import count_ids
        from tasks.data.tokens import TASKS, TokenWriter

        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token; winnow needs one to separate documents")
        tasks = list(self.corpus.parts())
        names = [f"{split}-{task}" if task else split for split in SPLITS for task in tasks]
        writers = {name: TokenWriter(context.output, name, count_ids(tokenizer)) for name in names}
        (context.output / TASKS).write_text(json.dumps([task for task in tasks if task]))
        with (context.output / "heldout.jsonl").open("w") as heldout:
            for count, (split, document) in enumerate(self._dealt(), 1):
                if not document.text.strip():       # it would be an end of text and nothing else
                    continue
                tokens = tokenizer(document.text, add_special_tokens=False, verbose=False).input_ids
                writers[split].add([*tokens, tokenizer.eos_token_id])
                if split.startswith("heldout"):
                    heldout.write(json.dumps(document._asdict()) + "\n")
                context.progress(count, 0, "documents")
        for split, writer in writers.items():
            if not writer.documents:
                raise ValueError(
                    f"corpus is too small: no document fell to the {split} split "
                    f"(give at least {LEAST_DOCUMENTS} documents, or larger shares)"
                )
            writer.flush()
        of = {split: [writers[name] for name in names if name.startswith(split)] for split in SPLITS}
        train, heldout = (sum(writer.counts for writer in of[split]) for split in ("train", "heldout"))
        return {
            "vocabulary": len(tokenizer),
            "unigram_perplexity": unigram_perplexity(train, heldout, len(tokenizer)),
            **{f"{split}_tokens": sum(writer.total for writer in of[split]) for split in SPLITS},
        }


def unigram_perplexity(train_counts: Any, heldout_counts: Any, vocabulary: int) -> float:
    """Held-out perplexity of the add-one smoothed unigram model: what a model that learned nothing but frequency scores.

    Counts are by id, and there may be ids that are none of the ``vocabulary``'s tokens.
    """
    import numpy as np

    probabilities = (train_counts + 1) / (train_counts.sum() + vocabulary)
    return float(np.exp(-(heldout_counts * np.log(probabilities)).sum() / heldout_counts.sum()))
