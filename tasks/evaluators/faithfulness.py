"""Whether answers are right, and whether they are drawn from the text they were to be drawn from.

Recall is the share of a right answer's words that are said, at best over the accepted answers: long answers lose nothing.
K-precision is the share of what is said that stands in the text: a model that makes things up, or answers from memory, loses
it. Compression may cost one and not the other.
"""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import Field

from tasks.data.digests import Source
from tasks.evaluators import ITEMS, Candidate, Evaluator, Part, with_errors
from tasks.harness.suites import OpenBook


class Faithfulness(Evaluator):
    """``recall`` and ``k_precision`` under each file's name, with the mean over files by their plain names."""

    paper: ClassVar[str] = "Evaluating Correctness and Faithfulness of Instruction-Following Models (arXiv 2307.16877)"
    metrics: ClassVar[tuple[str, ...]] = with_errors("recall", "k_precision")

    files: dict[Part, OpenBook] = Field(min_length=1)
    """Files of questions by name: JSON lines of question, answer, aliases and evidence, the text to answer from; or rows of
    TriviaQA with their pages."""
    evidence: int = Field(3072, gt=0)
    """Characters of the text that are shown, and that what is said is compared with."""
    new: int = Field(64, gt=0)
    """Tokens of an answer at most; it ends at an empty line."""
    limit: int | None = Field(None, gt=0)
    """Questions of each file at most, the first ones."""
    chat: bool = False
    """Whether to ask in the tokenizer's chat template."""
    batch: int = Field(16, gt=0)
    """Questions computed at once."""

    def parts(self) -> list[str]:
        return ["", *self.files]

    def sources(self) -> dict[str, Source]:
        return {f"faithfulness {name}": file for name, file in self.files.items()}

    def check_positions(self, positions: int) -> None:
        if self.new >= positions:
            raise ValueError(f"faithfulness.new {self.new} leaves no room for a question in the model's {positions} positions")

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.harness.kick import faithful, in_chat, opened
        from tasks.harness.score import make_task, means, score

        found: dict[str, float] = {}
        items = {}
        for number, (name, file) in enumerate(self.files.items()):
            candidate.progress(number, len(self.files), "files")
            rows = opened(file.with_evidence()[: self.limit], self.evidence)
            rows = in_chat(rows, candidate.tokenizer) if self.chat else rows
            task = make_task(name, faithful(self.new), rows, delimiter="")
            scored = score(candidate.model, candidate.tokenizer, [task], self.batch, candidate.longest)[name]
            found |= scored.figures(name)
            items[name] = scored.answers
        candidate.keep(ITEMS, json.dumps(items))
        return found | means(found, "recall", "k_precision")
