"""A zero-shot multiple-choice task made from the held-out text: which line comes next?

lm-eval scores it through its own API and a task file written here, so the numbers follow the field's protocol.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import Field

from tasks.evaluators import Candidate, Evaluator

TASK, ITEMS = "winnow_next_line", "items.jsonl"


class MultipleChoice(Evaluator):
    """A question is what a held-out document goes on with: its true next line among lines of others."""

    paper: ClassVar[str] = "lm-evaluation-harness (doi 10.5281/zenodo.10256836)"

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
        with tempfile.TemporaryDirectory() as folder:
            self.write_task(candidate.data, Path(folder))
            self._check_lengths(candidate, Path(folder))
            results = self._simple_evaluate(candidate, folder)
        return {
            "task_accuracy": results["acc,none"],
            "task_accuracy_stderr": results["acc_stderr,none"],
            "task_accuracy_normalised": results["acc_norm,none"],
            "task_chance": 1 / self.choices,
        }

    def _check_lengths(self, candidate: Candidate, folder: Path) -> None:
        """lm-eval cuts a context that is too long, and has no word for a choice that is."""
        items = [json.loads(line) for line in (folder / ITEMS).read_text().splitlines()]
        choices = {choice for item in items for choice in item["choices"]}
        longest = max(len(tokens) for tokens in candidate.tokenizer(sorted(choices), add_special_tokens=False).input_ids)
        if longest >= candidate.longest:
            raise ValueError(
                f"evaluator multiple_choice: a choice has {longest} tokens, and the model {candidate.longest} "
                "positions; leave it out for this model"
            )

    def _simple_evaluate(self, candidate: Candidate, folder: str) -> dict[str, float]:
        import datasets
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        datasets.disable_progress_bars()
        model = HFLM(
            pretrained=candidate.model,
            tokenizer=candidate.tokenizer,
            batch_size=self.batch,
            max_length=candidate.longest,
            add_bos_token=False,
        )
        results = simple_evaluate(
            model=model,
            tasks=[TASK],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            bootstrap_iters=100,  # any number but 0: the error of a mean is computed, not sampled
            verbosity="ERROR",
        )
        return results["results"][TASK]

    def write_task(self, data: Path, folder: Path) -> None:
        """The task's YAML file and its items as JSON lines."""
        with (folder / ITEMS).open("w") as file:
            for item in self.make_items(data):
                file.write(json.dumps(item) + "\n")
        task = {
            "task": TASK,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / ITEMS)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
            "num_fewshot": 0,
        }
        (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(task))

    def make_items(self, data: Path) -> list[dict[str, Any]]:
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
            items.append({"context": context, "choices": options, "answer": options.index(truth)})
        return items


def _lines(text: str) -> list[tuple[int, str]]:
    """(offset, line) of the lines that carry enough text to be told apart."""
    found, offset = [], 0
    for line in text.splitlines(keepends=True):
        if 24 <= len(line.strip()) <= 100:
            found.append((offset, line.rstrip()))
        offset += len(line)
    return found
