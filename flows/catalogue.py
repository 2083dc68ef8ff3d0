"""What MLflow shows of a model and of a stage by itself, once a run has come to its end: a LoggedModel per model artifact, and
in the run of each stage what it did, beside the model it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cluster.logged import NOTE, OURS, Model
from cluster.tracking import Tracking, flatten
from dashboards.numbers import rank
from flows import gates, note
from flows.plan import Plan, Step

GATES = "winnow.gates"  # the tag that says what models came to by the gates of their recipe
PART = "/"  # between a stage and its number, on the parent: MLflow groups charts by what stands before it
CONFIG = "config.json"
Read = Callable[[str, str], str]  # of a step a file of its artifact, empty where there is none


class Catalogue:
    """Of one flow run. ``page`` says where MLflow shows the run of a stage, from the root of its UI."""

    def __init__(
        self, plan: Plan, summary: Mapping[str, Any], tracking: Tracking, page: Callable[[str], str], read: Read
    ) -> None:
        self.plan, self.tracking, self.page, self.read = plan, tracking, page, read
        self.models = {model["stage"]: model for model in summary["models"]}
        self.numbers = {
            stage["id"]: {**stage["metrics"], "seconds": stage["seconds"]} for stage in summary["stages"] if stage["done"]
        }
        self.numbers |= {id: numbers_of(model) for id, model in self.models.items()}

    def list_models(self) -> None:
        for id, model in self.models.items():
            step = self.plan.by_id[id]
            about = f"{self.describe(step)}\n\nTake it by `winnow export {model['address']} DIR`."
            tags = {"winnow.address": model["address"], "winnow.recipe": self.plan.recipe.name, NOTE: about}
            tags |= note.of_model(model) | ({GATES: gates.told(model["gates"])} if "gates" in model else {})
            parents, fields = tuple(step.artifact.parents.values()), flatten(step.artifact.params)
            name, config = model["address"].replace("/", "-"), lambda id=id: self.read(id, CONFIG)
            self.tracking.model(id, Model(name, model["key"], tags, self.numbers[id], fields, parents, config))

    def describe_stage(self, step: Step, known: str = "") -> None:
        """In the run of a stage; a description that somebody wrote stays."""
        if known.startswith(OURS) or not known:
            self.tracking.tag(step.id, NOTE, self.describe(step))

    def describe(self, step: Step) -> str:
        before = step.node.came_from or ""
        earlier = self.numbers.get(before, {})
        places = {f"run of {before}": self.page(before)} if earlier else {}
        return note.of_stage(step.id, self.numbers[step.id], before if earlier else "", earlier, step.artifact.address, places)


def ordered(scalars: Mapping[str, float]) -> dict[str, float]:
    """A parent's numbers, those that a choice is made by first: MLflow's page of compared runs opens on the first that was
    written of those they share."""
    return dict(sorted(scalars.items(), key=lambda number: (PART in number[0], rank(number[0]))))


def numbers_of(model: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in model.items() if isinstance(value, (int, float))}
