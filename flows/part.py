"""The part of a recipe that ``--only`` and ``--until`` ask for: a stage, the evaluations of its model, and what feeds it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import NamedTuple

from flows.nodes import Node, Recipe


class Part(NamedTuple):
    """A stage by its id, by the name it has in a grid (all branches then), or by its kind where that is unique. ``only`` it,
    or everything ``until`` it; neither is the whole recipe."""

    only: str | None = None
    until: str | None = None


WHOLE = Part()


def chosen(recipe: Recipe, part: Part, option: str = "") -> frozenset[str]:
    """The ids of the stages that a part names and of the evaluations of their models. Raises ValueError, one line, which names
    the ``option`` that was given, where it is none of the part's own."""
    if part == WHOLE:
        return frozenset(node.id for node in recipe.nodes)
    if part.only is not None and part.until is not None:
        raise ValueError("--only and --until exclude each other; give one of them")
    own, name = ("--only", part.only) if part.until is None else ("--until", part.until)
    option = option or own
    stages = [node for node in recipe.nodes if not node.measures]
    found = [node for node in recipe.nodes if node.id == name] or [node for node in stages if node.base == name]
    if not found:
        found = [node for node in stages if node.name == name]
        if len({node.base for node in found}) > 1:
            raise ValueError(f"{option}: {name} is the kind of several stages; choose one of {_bases(found)}")
    if not found:
        raise ValueError(f"{option}: no stage {name!r} in recipe {recipe.name}; choose one of {_bases(stages)}")
    ids = {node.id for node in found}
    return frozenset(ids | {node.id for node in recipe.nodes if node.measures in ids})


def up_to(recipe: Recipe, ids: Set[str]) -> Recipe:
    """The nodes of these ids, all that feed them, and the evaluations of the models among those. A recipe's claims and gates
    stay where all of its models do."""
    kept = set(ids)
    for node in reversed(recipe.nodes):  # parents come before what they feed
        if node.id in kept or node.measures in kept:
            kept |= {node.id, *node.parents.values()}
    nodes = tuple(node for node in recipe.nodes if node.id in kept or node.measures in kept)
    part = replace(recipe, nodes=nodes)
    return part if len(list(part.models())) == len(list(recipe.models())) else replace(part, claims=(), require=())


def _bases(nodes: list[Node]) -> str:
    return ", ".join(dict.fromkeys(node.base for node in nodes))
