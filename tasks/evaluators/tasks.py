"""The field's tasks, scored by lm-eval: its own by name, and files of questions.

Accuracy is of the choice the model finds likeliest; normalised, per character of the choice; of a continuation, that greedy
decoding says it. Generated answers are matched with all accepted ones, as exact match and as F1 over words.
"""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import Field, model_validator

from tasks.data.digests import Source
from tasks.data.place import Place
from tasks.evaluators import ITEMS, Candidate, Evaluator, Part, with_errors
from tasks.harness.forms import TaskFile

MEANS = ("accuracy", "accuracy_normalised", "exact_match", "f1")


class Tasks(Evaluator):
    """Each metric under the task's name (``accuracy.arc_easy``, with ``accuracy_stderr.arc_easy``), and the mean over tasks."""

    paper: ClassVar[str] = "lm-evaluation-harness (doi 10.5281/zenodo.10256836)"
    version: ClassVar[int] = 2  # a continuation is asked after a space
    metrics: ClassVar[tuple[str, ...]] = with_errors(*MEANS)

    files: dict[Part, TaskFile] = {}
    """Files of questions by the task's name: a path, or ``{path: PATH, shots: 5}``. Their lines have the keys query, choices,
    gold; or context_options, continuation, gold; or context, continuation; or context, answer, aliases."""
    names: tuple[str, ...] = ()
    """Tasks that lm-eval brings, by its names; their data comes from the hub."""
    include: Place | None = None
    """A folder with further tasks as lm-eval's YAML files, which ``names`` may name."""
    limit: int | None = Field(None, gt=0)
    """Questions of each task at most, for a quick look."""
    batch: int = Field(16, gt=0)
    """Requests computed at once."""
    seed: int = 0
    """Seed of the draw of examples."""

    @model_validator(mode="after")
    def _some(self) -> Tasks:
        if not self.files and not self.names:
            raise ValueError("no task is named; give files or names")
        if twice := self.files.keys() & set(self.names):
            raise ValueError(f"{min(twice)} is both a file and a name of lm-eval's; give one of them another name")
        return self

    def parts(self) -> list[str] | None:
        """lm-eval's names may stand for several tasks."""
        return None if self.names else ["", *self.files]

    def sources(self) -> dict[str, Source]:
        return {f"task {name}": file for name, file in self.files.items()}

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.harness.bars import Several
        from tasks.harness.score import LABELS, make_task, means, score

        made, questions = [], 0
        for name, file in self.files.items():
            form, rows = file.rows()
            made.append(make_task(name, form, rows, file.shots, file.delimiter))
            questions += min(len(rows), self.limit or len(rows))
        scored, asked = {}, Several(candidate.progress, 0 if self.names else questions)  # lm-eval's own are read as they come
        for task in [*made, *self.names]:
            scored |= score(
                candidate.model,
                candidate.tokenizer,
                [task],
                self.batch,
                candidate.longest,
                limit=self.limit,
                include=self.include,
                seed=self.seed,
                progress=asked,
            )
            asked.next()
        found: dict[str, float] = {}
        for name, one in scored.items():
            found |= one.figures(name)
        candidate.keep(ITEMS, json.dumps({name: one.items for name, one in scored.items()}))
        for name, one in scored.items():
            if not one.figures(name):
                raise ValueError(f"task {name} tells {', '.join(one.metrics) or 'nothing'}, and none of {', '.join(LABELS)}")
        alone = {metric: value for name, one in scored.items() if one.items for metric, value in one.figures(name).items()}
        return found | means(alone, *MEANS)  # a group's own numbers are of tasks that count already
