"""What the stages of a recipe will cost where a profile runs them, and which of them cannot fit there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.profile import Profile
from flows.lineage import line, source_of
from flows.nodes import Node, Recipe, naming, vocabulary
from tasks.context import Execution
from tasks.models.source import ModelSource
from tasks.train.cards import CARDS
from tasks.train.cost import Machine, check_share, fitting, remedy

if TYPE_CHECKING:
    from tasks.models.accounting import Shape


def forecast(recipe: Recipe, node: Node, profile: Profile | None = None) -> dict[str, Any]:
    """Tokens, FLOPs, disk, and with a profile the peak of memory of a rank and on its card speed and hours, of one stage that
    makes a model or its logits; empty where the model is not known yet."""
    source = source_of(recipe.nodes, node)
    if node.stage.yields not in ("model", "logits") or source is None or (shape := _shape(recipe, node, source)) is None:
        return {}
    on = profile and machine(recipe, node, profile)
    if on and node.stage.distributed and node.stage.batch % on.execution.ranks:
        on = None  # it was made elsewhere: these ranks cannot share its steps
    costs = node.stage.forecast(shape, on)
    if node.stage.yields == "logits":
        return costs
    disk = _stored_bytes(source.checkpoint.local) if source.checkpoint else shape.parameters * _value_bytes(source)
    if node.name == "quantize" and disk and (bits := node.stage.stored_bits(shape.hidden)):
        disk += shape.prunable * (bits / 8 - disk / shape.parameters)
    return {"disk_bytes": disk, **costs}


def check_ranks(recipe: Recipe, nodes: Sequence[Node], profile: Profile) -> None:
    """Raise ValueError, in one line, at the first stage whose steps the profile's ranks cannot share."""
    for node in nodes:
        if node.stage.distributed:
            with naming(node):
                check_share(node.stage.batch, machine(recipe, node, profile).execution)


def check_room(recipe: Recipe, nodes: Sequence[Node], profile: Profile) -> None:
    """Raise ValueError, in one line, at the first stage whose training does not fit the profile's card."""
    for node in nodes if profile.card else ():
        source = source_of(recipe.nodes, node)
        if not node.stage.distributed or source is None or (shape := _shape(recipe, node, source)) is None:
            continue
        on = machine(recipe, node, profile)
        how, card = node.stage.step_on(on.execution, on.teacher), CARDS[profile.card]
        how = fitting(shape, how, on.execution.recompute, card.memory)
        if said := remedy(shape, how, card.memory):
            needed = on.expected(shape, how, 1)["memory_bytes"]
            with naming(node):
                raise ValueError(
                    f"a step takes about {needed / 2**30:,.0f} GiB of a rank's memory, and profile '{profile.name}' has cards "
                    f"({card.name}) of {card.memory / 2**30:.0f} GiB; {said} in the profile"
                )


def machine(recipe: Recipe, node: Node, profile: Profile) -> Machine:
    """Where a profile runs a stage."""
    resources = profile.resources(node.name)
    gpu = profile.device != "cpu" and bool(profile.card or profile.device == "cuda" or resources.gpus)
    low = profile.precision == "bfloat16" or (profile.precision == "auto" and gpu)
    execution = Execution(
        ranks=resources.ranks or 1,
        device="cuda" if gpu else "cpu",
        precision="bfloat16" if low else "float32",
        engine=profile.engine,
        zero=profile.zero,
        offload=profile.offload,
        micro_batch=profile.micro_batch,
        logits_bytes=profile.logits_bytes,
        compile=gpu if profile.compile == "auto" else profile.compile,
        recompute=profile.recompute,
    )
    return Machine(execution, CARDS[profile.card] if profile.card and gpu else None, _teacher(recipe, node))


def _teacher(recipe: Recipe, node: Node) -> Shape | None:
    """Of the model that a stage learns from."""
    if not node.stage.needs_teacher():
        return None
    other = recipe.node(node.parents["teacher"]) if "teacher" in node.parents else node
    source = getattr(node.stage, "teacher", None) or source_of(recipe.nodes, other)
    return _shape(recipe, other, source) if source else None


def _shape(recipe: Recipe, node: Node, source: ModelSource) -> Shape | None:
    """Of the model that a node's began as; None where it lies elsewhere."""
    if source.checkpoint:
        return _shape_in(source.checkpoint.local) if source.checkpoint.local else None
    data = next((before.parents["data"] for before in line(recipe.nodes, node.id) if "data" in before.parents), None)
    return _shape_of(source.model_dump_json(), vocabulary(recipe.nodes, data))


@cache
def _shape_of(source: str, ids: int | None) -> Shape:
    from tasks.models.accounting import shape_of_config

    return shape_of_config(ModelSource.model_validate_json(source).initial_config(ids))


@cache
def _shape_in(directory: Path) -> Shape:
    from tasks.models.accounting import shape_of
    from tasks.models.facts import facts_in

    return shape_of(facts_in(directory).skeleton)


def _stored_bytes(directory: Path) -> int:
    from tasks.models.files.intake import check_weights

    return sum(end - begin for begin, end in (entry["data_offsets"] for entry in check_weights(directory).values()))


def _value_bytes(source: ModelSource) -> int:
    return 2 if source.architecture and source.architecture.dtype == "bfloat16" else 4
