"""Gates: what a model must reach to be of use, read from a recipe and judged on its numbers.

    require: ["perplexity <= 1.05 * dense", "flips <= 2 %", "accuracy >= dense - stderr", pattern]

On the left a metric. On the right a number, or a share of what the ``dense`` or the ``parent`` model has, with an allowance in
numbers or in standard errors of the model's own. ``pattern`` alone: every promised pattern holds. Those models are judged that
no other is made from (``flows/lineage.py``). A gate is no part of any artifact's key: another one computes nothing anew.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
FORM = re.compile(
    r"(?P<metric>[A-Za-z0-9_][A-Za-z0-9_.-]*)\s*(?P<relation><=|>=|<|>)\s*"
    rf"(?:(?P<number>{NUMBER})\s*(?P<percent>%)?\s*(?:\*\s*)?)?(?P<reference>dense|parent)?"
    rf"(?:\s*(?P<sign>[+-])\s*(?:(?P<errors>(?:{NUMBER})?)\s*\*?\s*stderr|(?P<allowance>{NUMBER})))?\s*"
)
RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
SHORT = {"pattern": "pattern_holds >= 1"}
EXAMPLE = "perplexity <= 1.05 * dense"
EXAMPLES = f'"{EXAMPLE}", "flips <= 2 %", "accuracy >= dense - stderr", pattern'
PASSED, FAILED, UNKNOWN = "passes", "fails", "not measured"
COLOURS = {PASSED: "green", FAILED: "red", UNKNOWN: "yellow"}


@dataclass(frozen=True)
class Gate:
    """One requirement, as it is written in ``text``, and what that says."""

    text: str
    metric: str
    relation: str
    number: float
    reference: str | None
    allowance: float
    errors: float

    @property
    def error(self) -> str | None:
        """The metric whose standard errors are allowed for."""
        name, dot, part = self.metric.partition(".")
        return f"{name}_stderr{dot}{part}" if self.errors else None

    def judge(self, model: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
        """What a model with these numbers has, what it must reach, and whether it does: ``passes`` is None where it, or the
        model it is compared with, lacks a number."""
        value, error = model.get(self.metric), model.get(self.error) if self.error else 0.0
        other = reference.get(self.metric) if self.reference else 1.0
        limit = None
        if value is not None and other is not None and error is not None:
            limit = self.number * other + self.allowance + self.errors * error
        passes = None
        if limit is not None:
            equal = math.isclose(value, limit, rel_tol=1e-9)  # but for the last digits, of a sum of shares for instance
            passes = bool(RELATIONS[self.relation](limit if equal else value, limit))
        return {"gate": self.text, "value": value, "limit": limit, "passes": passes}


def read_gate(text: Any) -> Gate:
    """Raises ValueError where it is no requirement."""
    found = FORM.fullmatch(SHORT.get(text, text)) if isinstance(text, str) else None
    if found is None or not (found["number"] or found["reference"]):
        raise ValueError(f"{text!r} is no requirement; write for example {EXAMPLES}")
    if found["reference"] is None and found["sign"]:
        raise ValueError(f"{text!r}: an allowance goes with dense or parent; write for example {EXAMPLES}")
    sign = -1.0 if found["sign"] == "-" else 1.0
    return Gate(
        text,
        found["metric"],
        found["relation"],
        number=float(found["number"] or 1) / (100 if found["percent"] else 1),
        reference=found["reference"],
        allowance=sign * float(found["allowance"] or 0),
        errors=0.0 if found["errors"] is None else sign * float(found["errors"] or 1),
    )


Required = Annotated[Gate, BeforeValidator(read_gate), WithJsonSchema({"type": "string", "examples": [EXAMPLE]})]


def judged(gates: Sequence[Gate], models: Sequence[dict[str, Any]], against: Mapping[str, Mapping[str, object]]) -> None:
    """Put under ``gates`` what each of the models came to that are judged; ``against`` names them, each with its references."""
    known = {model["stage"]: model for model in models}
    for id, references in against.items():
        if gates and id in known:
            others = {which: known.get(str(one), {}) for which, one in references.items()}
            known[id]["gates"] = [gate.judge(known[id], others.get(gate.reference or "", {})) for gate in gates]


Verdicts = Sequence[Mapping[str, Any]]  # of a model, a gate each
Models = Sequence[Mapping[str, Any]]


def verdict(verdicts: Verdicts) -> str:
    """A word for all gates of a model; none where it is not judged."""
    found = [one["passes"] for one in verdicts]
    return FAILED if False in found else PASSED if True in found else UNKNOWN if found else ""


def coloured(word: str) -> str:
    """For a table on a terminal."""
    return f"[{COLOURS[word]}]{word}[/]" if word else ""


def failed(verdicts: Verdicts) -> str:
    """The gates that a model fails, with its numbers."""
    found = [one for one in verdicts if one["passes"] is False]
    return "; ".join(f"{one['gate']} ({one['value']:.6g}, and the limit is {one['limit']:.6g})" for one in found)


def told(verdicts: Verdicts) -> str:
    """The word, and the gates that fail."""
    return ": ".join(filter(None, (verdict(verdicts), failed(verdicts))))


def by_gate(models: Models) -> Iterator[tuple[str, list[str]]]:
    """Each gate, with a word for every model."""
    found = [model.get("gates", ()) for model in models]
    for number, gate in enumerate(next(filter(None, found), ())):
        yield gate["gate"], [verdict(verdicts[number : number + 1]) for verdicts in found]


def tags(models: Models) -> Iterator[tuple[str | None, str]]:
    """For MLflow, what each model that is judged came to, and, under None, all of them."""
    found = {model["stage"]: model["gates"] for model in models if "gates" in model}
    for id, verdicts in found.items():
        yield id, told(verdicts)
    if found:
        word = verdict([one for verdicts in found.values() for one in verdicts])
        yield None, UNKNOWN if word == PASSED and failures(models) else word


def failures(models: Models) -> list[str]:
    """What fails, model by model, and the gates that no model could be judged by."""
    found = [f"{model['stage']} fails {text}" for model in models if (text := failed(model.get("gates", ())))]
    unknown = [gate for gate, words in by_gate(models) if not {PASSED, FAILED} & set(words)]
    return found + [f"no model has the numbers for {gate}" for gate in unknown]
