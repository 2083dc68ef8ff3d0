"""A zero-shot multiple-choice task made from the held-out text: which line comes next?

lm-eval scores it, so the numbers follow the field's protocol.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Evaluator
from tasks.harness.forms import CHOICE, Row

TASK = "winnow_next_line"


class MultipleChoice(Evaluator):
    """A question is what a held-out document goes on with: its true next line among lines of others."""

    paper: ClassVar[str] = "lm-evaluation-harness (doi 10.5281/zenodo.10256836)"
    metrics: ClassVar[tuple[str, ...]] = ("task_accuracy", "task_accuracy_stderr", "task_accuracy_normalised", "task_chance")

    items: int = Field(200, gt=0)
    """Number of questions."""
    choices: int = Field(4, ge=2)
    """Lines to choose from, one of them right."""
    context: int = Field(240, gt=0)
    """Characters of the document before the choice."""
    batch: int = Field(32, gt=0)
    """Requests computed at once."""
    seed: int = 0
    """Seed of the draw of questions and of wrong choices."""

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.harness.score import make_task, score

        items = self.make_items(candidate.data)
        self._check_lengths(candidate, items)
        task = make_task(TASK, CHOICE, items, delimiter="")
        asked = (candidate.model, candidate.tokenizer, [task], self.batch, candidate.longest)
        scored = score(*asked, add_bos_token=False, progress=candidate.progress)[TASK]
        return {
            "task_accuracy": scored.metrics["acc"],
            "task_accuracy_stderr": scored.errors["acc"],
            "task_accuracy_normalised": scored.metrics["acc_norm"],
            "task_chance": 1 / self.choices,
        }

    def _check_lengths(self, candidate: Candidate, items: list[Row]) -> None:
        """lm-eval cuts a context that is too long, and has no word for a choice that is."""
        choices = {choice for item in items for choice in item["choices"]}
        longest = max(len(tokens) for tokens in candidate.tokenizer(sorted(choices), add_special_tokens=False).input_ids)
        if longest >= candidate.longest:
            raise ValueError(
                f"evaluator multiple_choice: a choice has {longest} tokens, and the model {candidate.longest} "
                "positions; leave it out for this model"
            )

    def make_items(self, data: Path) -> list[Row]:
        """Questions drawn from the held-out documents; the wrong lines come from elsewhere in them, near in length."""
        from tasks.data.tokens import heldout_documents

        chance = random.Random(self.seed)
        places = [
            (text[max(0, start - self.context) : start], line)
            for document in heldout_documents(data)
            for text in [document["text"]]
            for start, line in _lines(text)
            if start >= self.context
        ]
        if len({line for _, line in places}) < 8 * self.choices:
            raise ValueError("corpus is too small: the held-out documents have too few lines for multiple choice")
        by_length = sorted({line for _, line in places}, key=lambda line: (len(line), line))
        positions = {line: index for index, line in enumerate(by_length)}
        items = []
        for context, truth in chance.sample(places, min(self.items, len(places))):
            here = positions[truth]
            near = [line for line in by_length[max(0, here - 40) : here + 41] if line != truth]
            options = [truth, *chance.sample(near, self.choices - 1)]
            chance.shuffle(options)
            items.append({"query": context, "choices": options, "gold": options.index(truth)})
        return items


def _lines(text: str) -> list[tuple[int, str]]:
    """(offset, line) of the lines that carry enough text to be told apart."""
    found, offset = [], 0
    for line in text.splitlines(keepends=True):
        if 24 <= len(line.strip()) <= 100:
            found.append((offset, line.rstrip()))
        offset += len(line)
    return found
