"""lm-eval's progress bars: what they count goes to the stage's own progress, as questions, and none is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]


@contextmanager
def told(progress: Progress) -> Iterator[None]:
    """While it lasts, ``progress`` gets (questions answered, questions, unit): as large a share as of the requests that they
    are made of, which lm-eval puts in another order."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface
    from tqdm import tqdm

    questions = 0

    class Quiet(tqdm):
        def __init__(self, *args: Any, **fields: Any) -> None:
            super().__init__(*args, **{**fields, "disable": True})
            self.done, self.whole = 0, fields.get("total") or 0

    class Made(Quiet):
        """Goes through the questions of a task, before any is asked."""

        def __init__(self, *args: Any, **fields: Any) -> None:
            nonlocal questions
            super().__init__(*args, **fields)
            questions += self.whole

    class Told(Quiet):
        def update(self, count: float = 1) -> None:
            self.done += int(count)
            if self.whole:  # a list that is gone through, as when texts are tokenized, counts itself
                progress(self.done * questions // self.whole, questions, "questions")

    drawn = [(module, vars(module)["tqdm"]) for module in (model, task, huggingface)]
    for module, _ in drawn:
        vars(module)["tqdm"] = Made if module is task else Told
    try:
        yield
    finally:
        for module, bar in drawn:
            vars(module)["tqdm"] = bar


class Several:
    """The progress of tasks that are scored one after the other, as one. ``total`` is of the questions of all, 0 where they are
    not known yet."""

    def __init__(self, progress: Progress, total: int = 0) -> None:
        self.progress, self.total = progress, total
        self.before = self.of_task = 0

    def __call__(self, done: int, total: int, unit: str) -> None:
        self.of_task = total
        self.progress(self.before + done, self.total, unit)

    def next(self) -> None:
        """The task that was scored last is behind."""
        self.before, self.of_task = self.before + self.of_task, 0
