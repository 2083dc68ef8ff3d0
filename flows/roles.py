"""Roles: who fills those of a stage, and that whatever is said to fill one is used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.models.source import ModelSource
from tasks.stage import STAGES

if TYPE_CHECKING:
    from flows.nodes import Node
    from flows.sweep import Entry
    from tasks.stage import Stage

REMEDY = {
    "tokenizer": "put the prepare stage that trains it before this one",
    "data": "put a prepare stage before it",
    "model": "put a pretrain stage before it, or name a checkpoint in recipe.model",
    "teacher": "name it with from: {model: ..., teacher: ...}, or minimise cross-entropy (objective: cross_entropy)",
    "logits": "put a teach stage before it, of the model to learn from, or name it with from: {model: ..., logits: ...}",
    "reference": "name it with from: {model: ..., reference: ...}",
}


def an_entry(stated: Any) -> Any:
    """What stands in ``stages``, if it has the form of a stage; of one without fields YAML gives None."""
    if not isinstance(stated, dict):
        choices = ", ".join(STAGES)
        raise ValueError(f"a stage is written {{NAME: {{FIELD: value}}}}, got {stated!r}; choose one of {choices}")
    return {key: {} if value is None and key in STAGES else value for key, value in stated.items()}


def check_used(stage: Stage, own: Mapping[str, Any], stated: Mapping[str, str], path: str) -> None:
    """Raise ValueError where a role is filled that the stage takes nothing from, or anything is said twice. ``own`` are the
    fields as they were written, ``stated`` says who fills what."""
    try:
        stage.check_written()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    for role in stage.needs:
        field = isinstance(getattr(stage, role, None), ModelSource)  # some roles may be filled by a checkpoint
        needed = role in (stage.model_copy(update={role: None}) if field else stage).roles() or role == stage.plural
        places = [place for place, there in ((f"from.{role}", role in stated), (role, field and role in own)) if there]
        if places and not needed:
            used = getattr(stage, "minimised", getattr(stage, "method", stage))
            what = getattr(used, "name", stage.stage_name())
            raise ValueError(f"{path}: {places[0]} is used for nothing, as {what} needs no {role}; leave it out")
        if len(places) > 1:
            raise ValueError(f"{path}: {places[0]} and the field {role} both say what the {role} is; leave one of them out")


def check_together(made: Entry, path: str, members: Iterable[Node]) -> None:
    """Raise ValueError where a list of models, taken together for each branch of some, has others that stand on no branch."""
    members = list(members)
    axes = {axis for node in members for axis in node.branch} & made.branch.keys()
    for node in members:
        if made.document.get("gather", False) is False and (missing := axes - node.branch.keys()):
            raise ValueError(
                f"{path}: each branch of {', '.join(sorted(missing))} would be taken with the same {node.id}; "
                "put gather: true to take all together, or name the branches"
            )
