"""Tasks scored by us against lm-eval's own way to the same questions: its YAML task over the same file, on the same model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.bench.measured import Measured, median, spread, take_turns

QUESTIONS, ROUNDS = 100, 3  # of a size that scoring takes most of the time, as it does in earnest
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 300}


def measure() -> list[Measured]:
    import torch

    from tasks.data.tokenizer import load_tokenizer
    from tasks.harness.forms import CHOICE, TaskFile
    from tasks.harness.score import make_task, score
    from tests.tasks import data_zoo
    from tests.tasks import models_zoo as zoo

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "asked.jsonl"
        rows = [
            {"query": data_zoo.text(n, 2), "choices": [" falls", " weighs", " is"], "gold": n % 3} for n in range(QUESTIONS)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
        (Path(directory) / "theirs.yaml").write_text(json.dumps({"task": "theirs", **source, **CHOICE.config}))
        data_zoo.write_tokenizer(Path(directory) / "tokenizer")
        model, tokenizer = zoo.model("llama", **SIZES).eval(), load_tokenizer(Path(directory) / "tokenizer")

        def ours() -> None:
            form, read = TaskFile(path=str(path)).rows()
            score(model, tokenizer, [make_task("ours", form, read)], 16, 256)

        def theirs() -> None:
            score(model, tokenizer, ["theirs"], 16, 256, include=directory)

        rounds = take_turns({"ours": ours, "theirs": theirs}, ROUNDS)

    def ratio(seconds: dict[str, float]) -> float:
        return seconds["ours"] / seconds["theirs"]

    said = f"a file of {QUESTIONS} questions / lm-eval's YAML task over it; {spread(rounds, ratio)}"
    return [Measured("harness.tasks", median(rounds, ratio), 1.0, said)]
