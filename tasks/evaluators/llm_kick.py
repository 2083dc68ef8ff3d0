"""What compression breaks that perplexity hides, after LLM-KICK: facts known by heart, exams, answers found in a text that is
there, summaries. The offline part of it, on files the user has; no model of others judges.

Its known faults are mended: a prompt's own words never count as an answer, nothing said is wrong, each question counts once,
and a letter is found whatever stands around it. Summaries are scored by ROUGE, which is our substitute for its judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.data.digests import Source
from tasks.evaluators import ITEMS, Candidate, Evaluator, with_errors
from tasks.harness.suites import Exam, OpenBook, Questions, Stories, Suite

if TYPE_CHECKING:
    from tasks.harness.forms import Form, Row

PARTS = ("factoid", "multiple_choice", "closed_book", "open_book", "summaries")
SUBJECTS = "subjects.json"  # in a report: scores by subject
EXAM_TOKENS = 2048  # of an exam's prompt, as the paper has it
FRAME = 64  # tokens around a story


class LlmKick(Evaluator):
    """Each metric under its part: ``accuracy.kick_factoid``, ``accuracy.kick_multiple_choice`` (of all questions; by subject in
    ``report/subjects.json``), ``containment``, ``exact_match`` and ``f1`` of ``kick_closed_book`` and ``kick_open_book``,
    ``rouge1``, ``rouge2`` and ``rouge_l`` of ``kick_summaries``."""

    paper: ClassVar[str] = "LLM-KICK (arXiv 2310.01382)"
    metrics: ClassVar[tuple[str, ...]] = with_errors(
        "accuracy", "containment", "exact_match", "f1", "rouge1", "rouge2", "rouge_l"
    )

    factoid: Questions | None = None
    """Questions about facts: JSON lines of question, answer, aliases; or a JSON file of FreebaseQA."""
    multiple_choice: Exam | None = None
    """A folder as MMLU's: test/SUBJECT_test.csv, and dev/SUBJECT_dev.csv for the examples."""
    closed_book: Questions | None = None
    """Questions to be answered by heart: JSON lines, or rows of TriviaQA."""
    open_book: OpenBook | None = None
    """Questions with the text that has the answer: JSON lines with evidence, or rows of TriviaQA with their pages."""
    summaries: Stories | None = None
    """Stories of CNN/Daily Mail by a pattern, or JSON lines of document and summary."""
    shots: int = Field(5, ge=0)
    """Examples before an exam question; fewer where they do not fit."""
    evidence: int = Field(3072, gt=0)
    """Characters of a text that has the answer."""
    limit: int | None = Field(None, gt=0)
    """Questions of each part at most (of an exam: of each subject), the first ones."""
    chat: bool = False
    """Whether to ask in the tokenizer's chat template."""
    batch: int = Field(16, gt=0)
    """Questions computed at once."""

    @model_validator(mode="after")
    def _some(self) -> LlmKick:
        if not self._given():
            raise ValueError(f"there is nothing to ask; give one or more of {', '.join(PARTS)}")
        return self

    def _given(self) -> dict[str, Suite]:
        return {part: suite for part in PARTS if (suite := getattr(self, part)) is not None}

    def parts(self) -> list[str]:
        return [f"kick_{part}" for part in self._given()]

    def sources(self) -> dict[str, Source]:
        return {f"llm_kick.{part}": suite for part, suite in self._given().items()}

    def check_positions(self, positions: int) -> None:
        from tasks.harness.kick import SUMMARY_TOKENS

        if self.summaries and positions < SUMMARY_TOKENS + 2 * FRAME:
            raise ValueError(
                f"llm_kick.summaries are of up to {SUMMARY_TOKENS} tokens, which with a story are more than the model's "
                f"{positions} positions"
            )

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.harness.kick import in_chat
        from tasks.harness.score import make_task, score

        found: dict[str, float] = {}
        items: dict[str, list[dict[str, float | str]]] = {}
        for number, (part, form, rows) in enumerate(self._parts(candidate)):
            candidate.progress(number, len(self._given()), "parts")
            asked = in_chat(rows, candidate.tokenizer) if self.chat else rows
            name = f"kick_{part}"
            task = make_task(name, form, asked, delimiter="")
            scored = score(candidate.model, candidate.tokenizer, [task], self.batch, candidate.longest)[name]
            assert len(scored.items) == len(rows), "every question counts, and once"
            found |= scored.figures(name)
            items[part] = scored.answers
        candidate.keep(ITEMS, json.dumps(items))
        if self.multiple_choice:
            scores = [float(item["acc"]) for item in items["multiple_choice"]]
            candidate.keep(SUBJECTS, json.dumps(self._by_subject(scores)))
        return found

    def _parts(self, candidate: Candidate) -> Iterator[tuple[str, Form, list[Row]]]:
        """What is asked, part by part."""
        from tasks.harness import kick

        def count(text: str) -> int:
            return len(candidate.tokenizer(text, verbose=False).input_ids)

        def cut(text: str) -> str:
            return kick.first_tokens(text, candidate.longest - kick.SUMMARY_TOKENS - FRAME, candidate.tokenizer)

        fitting = min(EXAM_TOKENS, candidate.longest)
        makers: dict[str, tuple[Form, Callable[[list[Row]], list[Row]]]] = {
            "factoid": (kick.FACTOID, kick.closed),
            "multiple_choice": (kick.LETTER, lambda rows: kick.examined(rows, self.shots, fitting, count)),
            "closed_book": (kick.RECALL, kick.closed),
            "open_book": (kick.RECALL, lambda rows: kick.opened(rows, self.evidence)),
            "summaries": (kick.SUMMARY, lambda rows: kick.summarised(rows, cut)),
        }
        for part in self._given():
            form, make = makers[part]
            yield part, form, [{key: row[key] for key in form.keys} for row in make(self._rows(part))]

    def _rows(self, part: str) -> list[Row]:
        """The first questions of a part, or of each subject of it."""
        counts: dict[str, int] = {}
        chosen = []
        for row in self._given()[part].rows():
            subject = row.get("subject", "")
            counts[subject] = counts.get(subject, 0) + 1
            if self.limit is None or counts[subject] <= self.limit:
                chosen.append(row)
        return chosen

    def _by_subject(self, scores: list[float]) -> dict[str, float]:
        right: dict[str, list[float]] = {}
        for row, score in zip(self._rows("multiple_choice"), scores, strict=True):
            right.setdefault(row["subject"], []).append(score)
        return {subject: sum(scores) / len(scores) for subject, scores in right.items()}
