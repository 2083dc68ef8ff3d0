"""Which answers changed from those of the reference model: averages of accuracy hide answers that change both ways.

It reads what both models scored on every question (evaluator ``tasks``) and runs neither.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from tasks.evaluators import ITEMS, Contrast

RIGHT = ("acc", "exact_match")  # what says whether an answer is right


class Flips(Contrast):
    """Shares of a task's questions: answered rightly by the reference and wrongly now, the other way round, and both."""

    paper: ClassVar[str] = "Accuracy Is Not All You Need (arXiv 2407.09141)"
    metrics: ClassVar[tuple[str, ...]] = ("flips", "right_to_wrong", "wrong_to_right")
    compares: ClassVar[str] = "tasks"

    def parts(self) -> None:
        """The tasks are those of the other evaluator."""

    def contrast(self, ours: Path, theirs: Path) -> dict[str, float]:
        from tasks.harness.score import means

        answers, truths = (json.loads((folder / ITEMS).read_text()) for folder in (ours, theirs))
        found: dict[str, float] = {}
        for task in answers:
            metric = next((name for name in RIGHT if name in next(iter(answers[task]), {})), None)
            if metric is None:
                continue
            pairs = [(bool(new[metric]), bool(old[metric])) for new, old in zip(answers[task], truths[task], strict=True)]
            lost, won = (sum(pair == change for pair in pairs) for change in ((False, True), (True, False)))
            counts = {"flips": lost + won, "right_to_wrong": lost, "wrong_to_right": won}
            found |= {f"{name}.{task}": count / len(pairs) for name, count in counts.items()}
        if not found:
            raise ValueError(f"flips: no answer of {', '.join(answers)} is right or wrong; leave it out, or list other tasks")
        return found | means(found, *self.metrics)
