"""What may come after what: models whose weights are codes, models that have a mean, teachers that wrote their logits down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from flows.lineage import line
from flows.nodes import naming
from tasks.methods import dump
from tasks.models.files.layout import MASKS
from tasks.stage import members

if TYPE_CHECKING:
    from flows.nodes import Node


def check_succession(nodes: Sequence[Node]) -> None:
    """Raise ValueError at the first stage that cannot take what comes before it."""
    _check_unquantized(nodes)
    _check_merged(nodes)
    _check_taught(nodes)


def _check_unquantized(nodes: Sequence[Node]) -> None:
    """Raise ValueError where a stage would change the weights of a quantized model, which are codes; it may be measured, and
    teach."""
    known = {node.id: node for node in nodes}
    for node in nodes:
        before = known.get(node.came_from or "")
        if before and before.name == "quantize" and node.stage.yields == "model" and node.name != "merge":  # it says so itself
            model = before.came_from or "the stage before it"
            raise ValueError(
                f"recipe.{node.id}: {node.name} changes weights, and those of {before.id} are codes already; put {node.id} "
                f"before {before.id}, or name another model with from: {model}"
            )


def _check_merged(nodes: Sequence[Node]) -> None:
    """Raise ValueError where models are merged that were not each trained from the same one, under the same mask."""
    known = {node.id: node for node in nodes}
    for node in nodes:
        if node.name == "merge":
            for one, other in combinations(members(node.parents, node.stage.plural), 2):
                if said := _apart(known, one, other):
                    raise ValueError(f"recipe.{node.id}: {said}")


def _check_taught(nodes: Sequence[Node]) -> None:
    """Raise ValueError where a student reads logits that were not written of what it sees."""
    known = {node.id: node for node in nodes}
    for node in nodes:
        if "logits" not in node.parents:
            continue
        written = known[node.parents["logits"]]
        where = f"recipe.{node.id}"
        if (theirs := written.parents["data"]) != (data := node.parents["data"]):
            raise ValueError(f"{where}: it reads {data}, and the logits of {written.id} are of {theirs}; take them of one text")
        with naming(node):
            node.stage.check_written_logits(written.stage, written.id)


def _apart(known: Mapping[str, Node], one: str, other: str) -> str:
    """Why two models have no mean; empty where they have, or where it cannot be known."""
    if one == other:
        return f"{one} is named twice; name each model once"
    before, theirs = _before(known[one], known), _before(known[other], known)
    for late, early, came in ((one, other, before), (other, one, theirs)):
        if early in came:
            return f"{late} was made from {early}; gather models that were each trained from the same one"
    pruned = [next((each.id for each in line(known.values(), id) if each.name == "prune"), None) for id in (one, other)]
    if pruned[0] != pruned[1]:
        return (
            f"{one} and {other} were pruned apart, so their masks differ; gather what one pruned model was recovered to, "
            "as with gather: [seed]"
        )
    if not before & theirs:
        return f"{one} and {other} come from no common model; gather what one model was trained to, as with gather: [seed]"
    masks = _masks(known[one], known), _masks(known[other], known)
    if None not in masks and masks[0] != masks[1]:
        return (
            f"{one} and {other} are not under one mask, since their methods do not both hold what they came with; recover "
            "with methods that do, as masked does"
        )
    return ""


def _before(node: Node, known: Mapping[str, Node]) -> set[str]:
    """The models that a node's model came from: nodes, and the user's checkpoint it began at."""
    parents = {node.parents["model"]} if "model" in node.parents else set(members(node.parents, node.stage.plural))
    source = getattr(node.stage, "model", None)
    begun = {f"checkpoint {source.describe()}"} if source and source.checkpoint and not parents else set()
    return begun | parents | {id for parent in parents for id in _before(known[parent], known)}


def _masks(node: Node, known: Mapping[str, Node]) -> str | None:
    """A word for the masks of a node's model, the same where they are the same; None where that is not known."""
    if node.name == "prune":
        return node.id
    source = getattr(node.stage, "model", None)
    if node.came_from:
        given = _masks(known[node.came_from], known)
    elif source and source.checkpoint:
        local = source.checkpoint.local
        given = None if local is None else str(local) if (local / MASKS).exists() else ""
    else:
        given = ""
    method = getattr(node.stage, "method", None)
    outcome = getattr(method, "masks", "held")
    if outcome in ("narrowed", "drawn") and given != "" or outcome == "open" or getattr(method, "sparsity", None) == 0:
        return None  # weights that are dead already may be all that have to be
    made = {"held": given, "dropped": "", "moved": node.id, "narrowed": node.id}
    return made[outcome] if outcome in made else f"{dump(method)} {node.stage.seed}"
