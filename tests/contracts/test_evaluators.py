"""What every evaluator on the shelf promises: the numbers it names, the same ones again, no difference of a model from itself,
an error that resampling shows too, and a model that is as it was before."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cluster.store.canonical import canonical_json
from tasks.data.place import reading
from tasks.evaluate import Evaluate
from tasks.evaluators import Candidate, Contrast
from tasks.harness.score import LABELS
from tasks.methods import build, dump, load, names
from tasks.metrics import METRICS
from tasks.models.files.checkpoint import save_model
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

SHELF = names("evaluators")
QUICK = {
    "perplexity": {"length": 16, "tokens": 64},
    "divergence": {"length": 16, "tokens": 64},
    "speed": {"prompt": 8, "new": 2, "repeats": 1},
    "runtime": {"contexts": [8], "new": 2, "repeats": 1, "columns": [1], "rounds": 1, "block": 2, "group": 2},
    "multiple_choice": {"items": 4, "choices": 2},
    "atlas": {"length": 16, "tokens": 32},
    "tasks": {"files": {"choice": "choice.jsonl"}},
    "llm_kick": {"factoid": "asked.jsonl", "closed_book": "asked.jsonl", "open_book": "asked.jsonl", "batch": 2},
    "faithfulness": {"files": {"asked": "asked.jsonl"}, "new": 32},
    "activation_sparsity": {"percents": [1, 10], "sequences": 4, "length": 16, "tokens": 64},
}
FILES = {  # in the folder that the paths of QUICK begin in
    "choice.jsonl": [{"query": "The mill", "choices": [" falls", " weighs"], "gold": number % 2} for number in range(4)],
    "asked.jsonl": [
        {"question": f"What falls at {number}?", "answer": "chaff", "evidence": "The chaff falls."} for number in range(6)
    ],
}
TIMED = ("speed", "runtime")
evaluators = pytest.mark.parametrize("name", SHELF)


def quick(name, folder):
    return build("evaluators", {name: QUICK.get(name, {})}, context=reading(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models of one shape and a prepared text."""
    root = tmp_path_factory.mktemp("evaluators")
    for kind, shift in (("model", 0.0), ("reference", 0.01)):
        model = zoo.model("llama", layers=1, vocab_size=300)
        for parameter in model.parameters():
            parameter.data.add_(shift * parameter.data.sin())
        save_model(model.state_dict(), model.config, root / kind)
    data_zoo.write_tokenizer(root / "data" / "tokenizer")
    data_zoo.write_heldout(root / "data", [data_zoo.text(number) for number in range(8)])
    for split in ("heldout", "calibration"):
        data_zoo.write_tokens(root / "data", split, np.random.default_rng(0).integers(0, zoo.VOCABULARY, 200))
    for file, rows in FILES.items():
        (root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    _make_some_right(root)
    return root


def _make_some_right(root: Path) -> None:
    """Every second question is one that the model answers rightly: what it says is made an accepted answer."""
    quick("llm_kick", root).measure(Candidate(root / "model", root / "data", report=root / "said"))
    rows = [dict(row) for row in FILES["asked.jsonl"]]
    for part in json.loads((root / "said" / "items.json").read_text()).values():
        for row, item in list(zip(rows, part, strict=True))[::2]:
            row["aliases"] = [*row.get("aliases", ()), item["said"]]
    (root / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def candidate(name, folder) -> Candidate:
    """The model, with the other as its reference where one is asked for."""
    reference = Candidate(folder / "reference", folder / "data")
    return Candidate(folder / "model", folder / "data", reference=reference if quick(name, folder).needs_reference else None)


def measure(method, measured: Candidate, folder) -> dict[str, float]:
    if not isinstance(method, Contrast):
        return method.measure(measured)
    with tempfile.TemporaryDirectory() as reports:
        for number, each in enumerate((measured, measured.reference)):
            each.report = Path(reports, str(number))
            quick(method.compares, folder).measure(each)
        return method.contrast(Path(reports, "0"), Path(reports, "1"))


@pytest.fixture(scope="module")
def numbers(folder):
    return {name: measure(quick(name, folder), candidate(name, folder), folder) for name in SHELF}


@evaluators
def test_its_numbers_are_finite_and_those_it_names_out_of_the_vocabulary(name, folder, numbers):
    method = quick(name, folder)
    assert method.metrics and set(method.metrics) <= METRICS.keys() and all(map(math.isfinite, numbers[name].values()))
    parts = [metric.partition(".") for metric in numbers[name]]
    assert {known for known, _, _ in parts} <= set(method.metrics)
    assert method.parts() is None or {part for _, _, part in parts} <= set(method.parts())


def test_no_two_evaluators_give_a_number_the_same_name(numbers):
    given = [metric for name in SHELF for metric in numbers[name]]
    assert len(given) == len(set(given))


@evaluators
def test_measured_again_the_numbers_are_the_same_and_the_model_and_the_files_as_they_were(name, folder, numbers):
    def stored() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    files, measured = stored(), candidate(name, folder)
    before = {key: value.clone() for key, value in measured.model.state_dict().items()}
    again = measure(quick(name, folder), measured, folder)
    assert again.keys() == numbers[name].keys() and (name in TIMED or again == numbers[name])
    assert stored() == files and not measured.model.training
    assert all(value.equal(before[key]) for key, value in measured.model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in SHELF if load("evaluators", name).needs_reference])
def test_a_model_equal_to_its_reference_differs_in_nothing(name, folder):
    same = Candidate(folder / "model", folder / "data", reference=Candidate(folder / "model", folder / "data"))
    assert set(measure(quick(name, folder), same, folder).values()) == {0.0}


@pytest.mark.parametrize("name", ["tasks", "llm_kick", "faithfulness"])
def test_the_standard_error_of_what_is_asked_is_that_of_questions_drawn_anew(name, folder, numbers, tmp_path):
    measured = candidate(name, folder)
    measured.report = tmp_path
    measure(quick(name, folder), measured, folder)
    prefix, chance, seen = "kick_" if name == "llm_kick" else "", np.random.default_rng(0), []
    for task, items in json.loads((tmp_path / "items.json").read_text()).items():
        for metric in items[0].keys() & LABELS.keys():
            scores = np.array([item[metric] for item in items])
            drawn = scores[chance.integers(0, len(items), (20_000, len(items)))].mean(1).std()
            told = numbers[name][f"{LABELS[metric]}_stderr.{prefix}{task}"]
            assert told == pytest.approx(drawn * math.sqrt(len(items) / (len(items) - 1)), rel=0.05, abs=1e-9)
            seen.append(told)
    assert len(seen) == sum("_stderr." in metric for metric in numbers[name]) and max(seen) > 0


def test_the_standard_error_of_the_next_line_is_that_of_its_questions(numbers):
    found, questions = numbers["multiple_choice"], QUICK["multiple_choice"]["items"]
    accuracy = found["task_accuracy"]
    assert found["task_accuracy_stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / (questions - 1)))


@evaluators
def test_its_key_has_its_name_and_every_field_and_no_word_for_the_reference(name, folder):
    method = quick(name, folder)
    assert build("evaluators", dump(method)) == method and method.paper
    told = Evaluate(method=method).parameters()["method"]
    assert told.keys() == {name} and told[name].keys() - {"version"} == type(method).model_fields.keys() - {"reference"}
    assert canonical_json(told) and Evaluate(method=method).label == name
    roles = {"ours", "theirs"} if isinstance(method, Contrast) else {"data", "model"}
    roles |= {"reference"} if method.needs_reference and not isinstance(method, Contrast) else set()
    assert Evaluate(method=method).roles().keys() == roles
