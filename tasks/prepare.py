"""Prepare: text becomes a tokenizer and packed token shards: train, calibration and held-out.

Each may be a corpus of its own; a role without one is a share of the training text, dealt by document. There is one
tokenizer, and its vocabulary is learned from the training text alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.context import Context
from tasks.data.completions import Lines
from tasks.data.corpora import AnyCorpus, Roles
from tasks.data.corpus import SPLITS, Split
from tasks.data.digests import Digests
from tasks.data.documents import Document
from tasks.methods import short
from tasks.models.checkpoint import Checkpoint
from tasks.models.files.intake import check_tokenizer, has_chat_template
from tasks.stage import Kind, Stage

LEAST_DOCUMENTS = 20  # so that every split gets one at the default shares
NO_TEMPLATE = (
    "the corpus is written out by a chat template, and the tokenizer has none; give the corpus a template, or take a "
    "checkpoint's tokenizer that has one"
)
SEVERAL_TEMPLATES = (
    "the training text is written out by several chat templates; a model that learns it takes none of them along"
)
NEED = {1: "it needs", 2: "two splits need", 3: "three splits need"}


class Tokenizer(BaseModel):
    """``{train: VOCABULARY}`` trains a byte-level BPE on the train split; ``{checkpoint: PATH}`` takes an existing one,
    ``earlier`` that of the prepare stage this one comes from."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=short({"const": "earlier"})
    )

    train: int | None = Field(None, ge=257, le=1 << 20)
    """Vocabulary size of a byte-level BPE to train on the training text."""
    checkpoint: Checkpoint | None = None
    """An existing tokenizer: a directory, ``s3://...`` or a hub id with its revision."""
    earlier: bool = False
    """Take the tokenizer of the prepare stage this one comes from; written ``tokenizer: earlier``."""

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
    """The text: a corpus, a path, or one of either per role, ``{train: ..., calibration: ..., heldout: ...}``."""
    tokenizer: Tokenizer
    """What turns text into tokens: ``{train: VOCABULARY}``, ``{checkpoint: PATH}`` or ``earlier``."""
    heldout: float = Field(0.05, gt=0, lt=0.5)
    """Share of the training documents that is held out for evaluation, where the corpus names no held-out text."""
    calibration: float = Field(0.05, gt=0, lt=0.5)
    """Share of the training documents to calibrate on, where the corpus names no calibration text."""

    def check_written(self) -> None:
        for part in self.corpus.parts().values():
            for split in part.texts():
                if split != "train" and split in self.model_fields_set:
                    raise ValueError(
                        f"{split} is a share of the training text, and the corpus names a {split} text; leave one of them out"
                    )

    @model_validator(mode="after")
    def _has_a_template(self) -> Prepare:
        if self._templated and self.tokenizer.train:
            raise ValueError(NO_TEMPLATE)
        return self

    @property
    def _templated(self) -> bool:
        """Whether some text is written out by the tokenizer's chat template."""
        texts = [text for part in self.corpus.parts().values() for text in part.texts().values()]
        return any(isinstance(text, Lines) and text.templated for text in texts)

    @property
    def label(self) -> str:
        return type(self.corpus).__name__.lower()

    def roles(self) -> dict[str, Kind]:
        return dict(self.needs) if self.tokenizer.earlier else {}

    def sources(self) -> dict[str, Any]:
        return {"corpus": self.corpus} | ({"tokenizer": self.tokenizer.checkpoint} if self.tokenizer.checkpoint else {})

    def inspect(self) -> None:
        if (checkpoint := self.tokenizer.checkpoint) and checkpoint.local:
            check_tokenizer(checkpoint.local)
            if self._templated and not has_chat_template(checkpoint.local):
                raise ValueError(NO_TEMPLATE)
        elif checkpoint:
            checkpoint.inspect()

    def fingerprints(self, digests: Digests | None = None) -> dict[str, Any]:
        fingerprints = super().fingerprints(digests)
        self._check_enough()
        return fingerprints

    def _check_enough(self) -> None:
        """Raise ValueError where a text that can be read now has fewer documents than its splits need."""
        texts = self.corpus.texts()
        splits = 1 + len(SPLITS) - len(texts)  # that the training text is dealt to
        for role, corpus in texts.items():
            least = LEAST_DOCUMENTS if role == "train" and splits > 1 else 1
            found = (document for document in corpus.documents() if document.text.strip()) if corpus.at_hand else ()
            if corpus.at_hand and (count := sum(1 for _ in islice(found, least))) < least:
                name, needed = "corpus" if len(texts) == 1 else f"corpus.{role}", NEED[splits if least > 1 else 1]
                advice = f"; {said}" if (said := corpus.advice()) else ""
                raise ValueError(
                    f"{name} is too small: {count} document{'s' * (count != 1)} with text, {needed} {least}{advice}"
                )

    def learned_from(self) -> str:
        """What a tokenizer that is trained here is learned from; empty where none is. Two that are learned from the same are
        the same, whatever is held out."""
        if not self.tokenizer.train:
            return ""
        parts = []
        for task, corpus in self.corpus.parts().items():
            texts = corpus.texts()
            shares = [getattr(self, split) for split in SPLITS if split != "train" and split not in texts]
            parts.append([task, type(texts["train"]).__name__, texts["train"].model_dump_json(), shares])
        return json.dumps([self.tokenizer.train, parts])

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

    def _templates(self, tokenizer: Any) -> set[str]:
        """The chat templates that write the training text out."""
        texts = [part.texts()["train"] for part in self.corpus.parts().values()]
        return {tokenizer.get_chat_template(text.template) for text in texts if isinstance(text, Lines) and text.talks}

    def _dealt(self, *wanted: Split) -> Iterable[tuple[str, Document]]:
        """(split, document); of a sequence of tasks the split carries the task's name too: ``train-first``."""
        for task, corpus in self.corpus.parts().items():
            for split, document in corpus.deal(self.heldout, self.calibration, wanted or SPLITS):
                yield (f"{split}-{task}" if task else split), document

    def _fallbacks(self) -> Iterator[str]:
        """What the roles that a corpus by role leaves out fall back to."""
        for task, corpus in self.corpus.parts().items():
            named, of = corpus.texts(), f" of task {task}" if task else ""
            for split in SPLITS if isinstance(corpus, Roles) else ():
                if split not in named:
                    yield f"corpus{of} names no {split} text: it is {getattr(self, split):.1%} of the training documents"

    def _encode(self, tokenizer: Any, context: Context) -> dict[str, float]:
        from tasks.data.completions import encode
        from tasks.data.overlap import Overlap
        from tasks.data.tokenizer import CHAT_TEMPLATE, count_ids
        from tasks.data.tokens import TASKS, TokenWriter

        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token; winnow needs one to separate documents")
        if self._templated and not tokenizer.chat_template:
            raise ValueError(NO_TEMPLATE)
        tasks, overlap = list(self.corpus.parts()), Overlap()
        names = [f"{split}-{task}" if task else split for split in SPLITS for task in tasks]
        writers = {name: TokenWriter(context.output, name, count_ids(tokenizer)) for name in names}
        (context.output / TASKS).write_text(json.dumps([task for task in tasks if task]))
        with (context.output / "heldout.jsonl").open("w") as heldout:
            for count, (split, document) in enumerate(self._dealt(), 1):
                if not document.text.strip():  # it would be an end of text and nothing else
                    continue
                writers[split].add(*encode(document, tokenizer))
                overlap.see(split.partition("-")[0], document.text)
                if split.startswith("heldout"):
                    heldout.write(json.dumps({"name": document.name, "text": document.text}) + "\n")
                context.progress(count, 0, "documents")
        for split, writer in writers.items():
            if not writer.documents:
                raise ValueError(
                    f"corpus is too small: no document fell to the {split} split "
                    f"(give at least {LEAST_DOCUMENTS} documents, or larger shares)"
                )
            writer.flush()
        if len(templates := self._templates(tokenizer)) == 1:
            (context.output / CHAT_TEMPLATE).write_text(templates.pop())
        for remark in (*self._fallbacks(), *overlap.remarks(), *([SEVERAL_TEMPLATES] if templates else [])):
            context.note(remark)
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
