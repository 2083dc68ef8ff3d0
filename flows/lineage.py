"""The line of a model: the models it came from, one through another, and the evaluations of it, some against one of those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tasks.evaluate import Evaluate
from tasks.evaluators import Contrast, Evaluator
from tasks.metrics import METRICS
from tasks.stage import members

if TYPE_CHECKING:
    from flows.gates import Gate
    from flows.nodes import Node
    from flows.trials import Search, Trial
    from tasks.methods import Method
    from tasks.models.source import ModelSource
    from tasks.stage import Stage

COMPRESS = ("prune", "quantize")
OF_EVERY_MODEL = "sparsity"  # which no evaluator measures: whoever makes a model tells it


def line(nodes: Iterable[Node], id: str | None) -> Iterator[Node]:
    """The node that made a model, then those of the models before it."""
    known = {node.id: node for node in nodes}
    while id:
        yield known[id]
        id = known[id].came_from


def upstream(nodes: Iterable[Node], node: Node) -> Iterator[Stage]:
    """The stages a node's model has been through, the last first."""
    return (before.stage for before in line(nodes, node.came_from))


def source_of(nodes: Iterable[Node], node: Node) -> ModelSource | None:
    """Where the model of a node began."""
    sources = (getattr(stage, "model", None) for stage in (node.stage, *upstream(nodes, node)))
    return next(filter(None, sources), None)


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
        if isinstance(method, Contrast):
            listed = any(other.name == method.compares for other in methods)
            parents = {"ours": f"{model}.{method.compares}", "theirs": f"{found}.{method.compares}"} if found and listed else {}
        else:
            parents = {"model": model, "data": data, **({"reference": found} if found else {})}
        if parents.keys() == stage.roles().keys():
            yield stage, parents


def check_measured(nodes: Sequence[Node], methods: Sequence[Method]) -> None:
    """Raise ValueError where an evaluator finds no model that it can measure."""
    measured = {node.stage.method.name for node in nodes if node.measures}
    for method in methods:
        if method.name not in measured and any(node.stage.yields == "model" for node in nodes):
            if isinstance(method, Contrast) and all(other.name != method.compares for other in methods):
                raise ValueError(f"recipe.evaluate: {method.name} compares what {method.compares} reports; list that too")
            loaded = ", or put load: {} before the stage that takes a checkpoint" if isinstance(method, Contrast) else ""
            raise ValueError(
                f"recipe.evaluate: {method.name} compares a model with the {method.reference} one that it came "
                f"from, and no model of this recipe has one; leave it out{loaded}"
            )


def against(nodes: Sequence[Node]) -> dict[str, dict[str, str | ModelSource | None]]:
    """The models that gates judge, those that no other is made from, each with what ``dense`` and ``parent`` mean of it."""
    models = [node for node in nodes if node.stage.yields == "model"]
    passed = {id for node in models for id in (node.came_from, *members(node.parents, node.stage.plural))}
    return {
        node.id: {which: reference(nodes, node.id, which) for which in ("dense", "parent")}
        for node in models
        if node.id not in passed
    }


def check_required(nodes: Sequence[Node], gates: Sequence[Gate], evaluators: Sequence[Evaluator]) -> None:
    """Raise ValueError at a gate that no model could be judged by: nothing measures it, or there is nothing to compare with."""
    judged = against(nodes)
    for number, gate in enumerate(gates):
        where = f"recipe.require[{number}]: {gate.text!r}"
        if not judged:
            raise ValueError(f"{where}: no stage makes a model; leave it out")
        for metric in filter(None, (gate.metric, gate.error)):
            _check_metric(metric, evaluators, where)
        if gate.reference is None:
            if METRICS[gate.metric.partition(".")[0]].unit == "share" and gate.number > 1:
                raise ValueError(
                    f"{where}: {gate.metric} is a share, from 0 to 1; write {gate.number:g} % or {gate.number / 100:g}"
                )
            continue
        found = {id: references[gate.reference] for id, references in judged.items()}
        if not any(found.values()):
            raise ValueError(f"{where}: no model that it judges ({', '.join(found)}) has a {gate.reference} one; leave it out")
        for id, source in found.items():
            if source and not isinstance(source, str):
                raise ValueError(
                    f"{where}: the {gate.reference} model of {id} is {source.describe()}, which this recipe does not measure; "
                    "put load: {} before the stage that takes it"
                )


def _check_metric(metric: str, evaluators: Sequence[Evaluator], where: str) -> None:
    """Raise ValueError where no evaluator measures it; of what only its data or lm-eval can name, any name may be meant."""
    name, _, part = metric.partition(".")
    able = [method for method in evaluators if name in method.metrics]
    names = {known: None for method in able for known in method.parts() or (part,)}
    if metric == OF_EVERY_MODEL or part in names:
        return
    if able:
        raise ValueError(f"{where}: {able[0].name} measures no {metric}; choose one of {_listed(name, names)}")
    known = ", ".join(dict.fromkeys([OF_EVERY_MODEL, *(each for method in evaluators for each in method.metrics)]))
    raise ValueError(f"{where}: no evaluator of this recipe measures {metric}; list one that does, or choose one of {known}")


def _listed(name: str, parts: Iterable[str]) -> str:
    return ", ".join(f"{name}.{part}" if part else name for part in parts)
