"""A file of questions scores what lm-eval's own reading of it scores, to the last digit."""

from __future__ import annotations

import json

import pytest

from tasks.harness.forms import CHOICE, CONTINUATION, SCHEMA, TaskFile
from tasks.harness.score import make_task, score
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

WORDS = ("the mill", " falls", " weighs", " the chaff", " grain", " of wheat")
FILES = {
    "choice": (CHOICE, [{"query": WORDS[n % 3], "choices": list(WORDS[1 : 3 + n % 3]), "gold": n % 2} for n in range(12)]),
    "schema": (SCHEMA, [{"context_options": list(WORDS[3:5]), "continuation": WORDS[n % 3], "gold": n % 2} for n in range(12)]),
    "continuation": (CONTINUATION, [{"context": WORDS[n % 6], "continuation": WORDS[n % 4]} for n in range(12)]),
}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """By us and by lm-eval, which reads the same files through YAML."""
    folder = tmp_path_factory.mktemp("score")
    data_zoo.write_tokenizer(folder / "tokenizer")
    from tasks.data.tokenizer import load_tokenizer

    model, tokenizer = zoo.model("llama", layers=1, vocab_size=300).eval(), load_tokenizer(folder / "tokenizer")
    ours = []
    for name, (form, rows) in FILES.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found, read = TaskFile(path=str(path)).rows()
        assert found is form
        ours.append(make_task(name, found, read))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
        (folder / f"theirs_{name}.yaml").write_text(json.dumps({"task": f"theirs_{name}", **source, **form.config}))
    return tuple(
        score(model, tokenizer, tasks, 4, 64, limit=10, include=str(folder), add_bos_token=False)
        for tasks in (ours, [f"theirs_{name}" for name in FILES])
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_it_is_what_lm_eval_says_of_the_same_file(name, scored):
    ours, theirs = scored[0][name], scored[1][f"theirs_{name}"]
    assert ours.metrics == theirs.metrics and ours.errors == theirs.errors and ours.items == theirs.items
    assert len(ours.items) == 10 and ours.metrics
