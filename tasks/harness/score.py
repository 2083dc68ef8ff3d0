"""Scores a model on tasks by lm-eval's own classes, so that numbers compare with what its command line prints."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.harness.bars import Progress, told
from tasks.harness.forms import CONTINUATION, Form, Row

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

LOG = logging.getLogger(__name__)
LABELS = {  # lm-eval's names of metrics, and those of our forms, in the vocabulary's words
    "acc": "accuracy",
    "acc_norm": "accuracy_normalised",
    "exact_match": "exact_match",
    "f1": "f1",
    "containment": "containment",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rouge_l",
    "recall": "recall",
    "k_precision": "k_precision",
}


@dataclass(frozen=True)
class Scored:
    """A task's metrics by lm-eval's names, with the standard error of each, and, in order, what every question scored and
    what was said to it where answers are generated. A group of tasks has no questions of its own."""

    metrics: dict[str, float]
    errors: dict[str, float]
    items: list[dict[str, float]]
    said: list[str]

    @property
    def answers(self) -> list[dict[str, float | str]]:
        """What was said to every question, with what it scored."""
        return [{**item, "said": said} for item, said in zip(self.items, self.said, strict=True)]

    def figures(self, name: str) -> dict[str, float]:
        """By metric name, with the task's; of one question alone there is no error."""
        found: dict[str, float] = {}
        for metric, label in LABELS.items():
            if metric in self.metrics:
                found[f"{label}.{name}"] = self.metrics[metric]
                if metric in self.errors:
                    found[f"{label}_stderr.{name}"] = self.errors[metric]
        return found


def means(figures: Mapping[str, float], *labels: str) -> dict[str, float]:
    """The mean of each metric over the tasks that have it; with its standard error where each of them has one, as of samples
    that were drawn apart."""
    found: dict[str, float] = {}
    for label in labels:
        tasks = [name.partition(".")[2] for name in figures if name.startswith(f"{label}.")]
        errors = [figures[name] for task in tasks if (name := f"{label}_stderr.{task}") in figures]
        if tasks:
            found[label] = sum(figures[f"{label}.{task}"] for task in tasks) / len(tasks)
        if tasks and len(errors) == len(tasks):
            found[f"{label}_stderr"] = math.hypot(*errors) / len(tasks)
    return found


def make_task(
    name: str, form: Form, rows: Sequence[Row], shots: int = 0, delimiter: str = " ", seed: int = 0
) -> ConfigurableTask:
    """A task of questions at hand; examples are drawn from the questions, never the one that is asked."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    def dataset(**_: object) -> dict[str, datasets.Dataset]:
        table = datasets.table.InMemoryTable.from_pylist(list(rows))
        return {"test": datasets.Dataset(table, fingerprint=name)}  # told, or all rows would be pickled for one

    if form is CONTINUATION:  # lm-eval puts nothing between these itself
        rows = [{**row, "continuation": _following(row, delimiter)} for row in rows]
        delimiter = ""
    config = {
        **form.config,
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": shots,
        "target_delimiter": delimiter,
    }
    if judge := form.judge:

        def judged(row: Row, said: Sequence[str]) -> dict[str, float]:
            return judge(row, said[0])

        config["process_results"] = judged
    return ConfigurableTask(config=config)


def _following(row: Row, delimiter: str) -> str:
    """The continuation with what stands before it."""
    apart = row["context"][-1:].isspace() or row["continuation"][:1].isspace()
    return str(row["continuation"]) if apart else f"{delimiter}{row['continuation']}"


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[ConfigurableTask | str],
    batch: int,
    longest: int,
    limit: int | None = None,
    include: str | None = None,
    add_bos_token: bool | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total, unit: None,
) -> dict[str, Scored]:
    """The tasks' scores by name. ``tasks`` are tasks, or names of lm-eval's or of the YAML files in the folder ``include``;
    ``progress`` gets (questions answered, questions, unit).
    Raises ValueError where lm-eval cannot ask them, or the model answers with NaN."""
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()
    named = any(isinstance(task, str) for task in tasks)
    asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=longest, add_bos_token=add_bos_token)
    try:
        with told(progress):
            results = simple_evaluate(
                model=asked,
                tasks=list(tasks),
                task_manager=TaskManager(include_path=include, include_defaults=named),
                limit=limit,
                bootstrap_iters=100,  # any number but 0: the error of a mean is computed, not sampled
                fewshot_random_seed=seed,
                verbosity="ERROR",
            )
    except AssertionError as error:
        names = ", ".join(task if isinstance(task, str) else str(task.config.task) for task in tasks)
        unasked = "a question or an answer that is no token, or is longer than the model's positions"
        raise ValueError(f"lm-eval cannot ask {names}: {error if str(error) else unasked}") from None
    for name, samples in results["samples"].items():
        _look(name, samples, tokenizer, longest)
    return {name: _scored(results["results"][name], results["samples"].get(name, [])) for name in results["results"]}


def _look(name: str, samples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerFast, longest: int) -> None:
    """Raise ValueError where a log-likelihood is no number, and say how many questions had to be cut."""
    told = [answer for sample in samples for answer in sample["filtered_resps"] if isinstance(answer, (tuple, list))]
    if any(math.isnan(likelihood) for likelihood, *_ in told):
        raise ValueError(f"the model is broken: its log-likelihoods of {name} are NaN")
    requests = [arguments for sample in samples for arguments in sample["arguments"]]
    asked = ["".join(part for part in arguments if isinstance(part, str)) for arguments in requests]
    long = [text for text in asked if len(text.encode()) >= longest]  # the others have fewer bytes than that many tokens
    lengths = [len(ids) for ids in tokenizer(long, add_special_tokens=False, verbose=False).input_ids] if long else []
    if cut := sum(length > longest for length in lengths):
        LOG.warning("task %s: %d of %d requests exceed %d tokens and lose their beginning", name, cut, len(asked), longest)


def _scored(found: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> Scored:
    """By the first of the task's filters, where it has several: each of them scores every question."""
    chosen = next((name.partition(",")[2] for name in found if "," in name), "none")
    samples = [sample for sample in samples if sample.get("filter", chosen) == chosen]
    numbers = {
        name.partition(",")[0]: value
        for name, value in found.items()
        if name.partition(",")[2] == chosen and isinstance(value, (int, float))
    }
    metrics = {name: float(value) for name, value in numbers.items() if not name.endswith("_stderr")}
    errors = {name.removesuffix("_stderr"): float(value) for name, value in numbers.items() if name.endswith("_stderr")}
    items = [
        {name: float(sample[name]) for name in metrics if isinstance(sample.get(name), (int, float))} for sample in samples
    ]
    said = [sample["filtered_resps"][0] for sample in samples if isinstance(sample["filtered_resps"][0], str)]
    return Scored(metrics, errors, items, said)
