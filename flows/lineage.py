"""The line of a model: the models it came from, one through another, and the evaluations of it, some against one of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.evaluate import Evaluate
from tasks.stage import members

if TYPE_CHECKING:
    from flows.nodes import Node
    from flows.trials import Search, Trial
    from tasks.methods import Method
    from tasks.models.source import ModelSource
    from tasks.stage import Stage

COMPRESS = ("prune", "quantize")


def line(nodes: Iterable[Node], id: str | None) -> Iterator[Node]:
    """The node that made a model, then those of the models before it."""
    known = {node.id: node for node in nodes}
    while id:
        yield known[id]
        id = known[id].came_from


def check_merged(nodes: Sequence[Node]) -> None:
    """Raise ValueError where models are merged that were pruned apart: what one mask kills the other keeps."""
    for node in nodes:
        if node.name == "merge":
            models = members(node.parents, node.stage.plural)
            pruned = {next((before.id for before in line(nodes, id) if before.name == "prune"), "none"): id for id in models}
            if len(pruned) > 1:
                one, other = list(pruned.values())[:2]
                raise ValueError(
                    f"recipe.{node.id}: {one} and {other} were pruned apart, so their masks differ; gather what "
                    "one pruned model was recovered to, as with gather: [seed]"
                )


def check_trials(nodes: Sequence[Node], search: Search | None, trials: Sequence[Trial]) -> None:
    """Raise ValueError where what comes out shall decide what runs, and cannot: nothing is measured, or trials are taken
    together that are not there at once."""
    if search is None or not search.decides:
        return
    on_trial = {id for trial in trials for id in trial.nodes}
    if not any(node.measures in on_trial for node in nodes):
        raise ValueError(f"recipe.search.objective: no model is measured; add evaluate: {{{search.objective}: {{}}}}")
    for node in nodes:
        if not node.measures and node.id not in on_trial and on_trial & set(node.parents.values()):
            raise ValueError(f"recipe.{node.id}: it takes trials together, which stop and tpe do not let end together")


def reference(nodes: Iterable[Node], model: str, which: str) -> str | ModelSource | None:
    """What an evaluator compares a model with: what went into the first pruning or quantization of its line (``dense``), or
    into the stage that made it (``parent``). The id of a node, a user's checkpoint, or None where there is no such model."""
    made = [node for node in line(nodes, model) if which == "parent" or node.name in COMPRESS]
    if not made:
        return None
    node = made[0 if which == "parent" else -1]
    source = getattr(node.stage, "model", None)
    return node.came_from or (source if source and source.checkpoint else None)


def referring(nodes: Iterable[Node], stage: Stage, model: str | None) -> tuple[Stage, str | None]:
    """A stage that measures a model, told of the user's checkpoint that is its reference, or the id of the node that is."""
    method = getattr(stage, "method", None)
    if model is None or not getattr(method, "needs_reference", False) or stage.reference:
        return stage, None
    found = reference(nodes, model, method.reference)
    if found is None or isinstance(found, str):
        return stage, found
    return stage.model_copy(update={"reference": found}), None


def evaluations(
    nodes: Sequence[Node], methods: Sequence[Method], seed: int, model: str, data: str
) -> Iterator[tuple[Evaluate, dict[str, str]]]:
    """A stage and its parents for each evaluator, those that want the machine for themselves last. One that compares is left
    out for a model that has no reference."""
    for method in sorted(methods, key=lambda method: method.exclusive):
        stage, found = referring(nodes, Evaluate(method=method, seed=seed), model)
        parents = {"model": model, "data": data, **({"reference": found} if found else {})}
        if parents.keys() == stage.roles().keys():
            yield stage, parents


def check_measured(nodes: Sequence[Node], methods: Sequence[Method]) -> None:
    """Raise ValueError where an evaluator finds no model that it can measure."""
    measured = {node.stage.method.name for node in nodes if node.measures}
    for method in methods:
        if method.name not in measured and any(node.stage.yields == "model" for node in nodes):
            raise ValueError(
                f"recipe.evaluate: {method.name} compares a model with the {method.reference} one that it came "
                "from, and no model of this recipe has one; leave it out"
            )
