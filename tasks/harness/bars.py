"""lm-eval's progress bars: what they count goes to the stage's own progress, and none is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Progress = Callable[[int, int, str], None]


@contextmanager
def told(progress: Progress) -> Iterator[None]:
    """While it lasts, ``progress`` gets (answers scored, answers, unit)."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface
    from tqdm import tqdm

    class Told(tqdm):
        def __init__(self, *args: Any, **fields: Any) -> None:
            super().__init__(*args, **{**fields, "disable": True})
            self.done, self.whole = 0, fields.get("total")

        def update(self, count: float = 1) -> None:
            self.done += int(count)
            if self.whole:  # a list that is gone through, as when texts are tokenized, counts itself
                progress(self.done, self.whole, "answers")

    drawn = [(module, vars(module)["tqdm"]) for module in (model, task, huggingface)]
    for module, _ in drawn:
        vars(module)["tqdm"] = Told
    try:
        yield
    finally:
        for module, bar in drawn:
            vars(module)["tqdm"] = bar
