"""Evaluate: measure one model with the evaluators of the recipe, on held-out text."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from tasks.methods import Method, build, dump, several
from tasks.models.facts import Parties, facts_in, ids_in
from tasks.stage import Context, Kind, Stage


def _build_all(specs: Any) -> tuple[Method, ...]:
    if isinstance(specs, dict):
        specs = [{name: fields} for name, fields in specs.items()]
    if not isinstance(specs, (list, tuple)):
        raise ValueError("evaluators is a list of names, or of {NAME: {field: value}}")
    return tuple(build("evaluators", spec) for spec in specs)


def _dump_all(evaluators: tuple[Method, ...]) -> dict[str, Any]:
    return {name: fields for evaluator in evaluators for name, fields in dump(evaluator).items()}


class Evaluate(Stage):
    needs: ClassVar[dict[str, Kind]] = {"data": "tokens", "model": "model"}
    yields: ClassVar[Kind] = "metrics"

    evaluators: Annotated[
        tuple[Method, ...], BeforeValidator(_build_all), PlainSerializer(_dump_all), WithJsonSchema(several("evaluators"))
    ]
    """What is measured: names, or ``{NAME: {field: value}}``."""

    def part(self, exclusive: bool) -> Evaluate:
        """The same stage with only the evaluators that need the whole machine, or only the others."""
        chosen = tuple(evaluator for evaluator in self.evaluators if evaluator.exclusive == exclusive)
        return self.model_copy(update={"evaluators": chosen})

    @property
    def exclusive(self) -> bool:
        return any(evaluator.exclusive for evaluator in self.evaluators)

    def parties(self, context: Context) -> Parties:
        return Parties(ids_in(context.inputs["data"]), facts_in(context.inputs["model"]))

    def check_parties(self, parties: Parties) -> None:
        parties.check()
        if parties.model and parties.model.positions:
            for evaluator in self.evaluators:
                evaluator.check_positions(parties.model.positions)

    def run(self, context: Context) -> dict[str, float]:
        from tasks.evaluators import Candidate

        metrics: dict[str, float] = {}
        candidate = Candidate(
            context.inputs["model"], context.inputs["data"], context.execution.device, context.progress
        )
        for evaluator in self.evaluators:
            metrics |= evaluator.measure(candidate)
        return metrics
