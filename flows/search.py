"""A search that decides as it goes: Optuna chooses the values of a trial by what those before came to, and stops trials
whose models so far are dominated.

Nothing of it is kept but the artifacts. The study is built anew whenever the recipe runs: the same seed asks for the same
trials, those that are done already answer at once, and so an interrupted search goes on where it was.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.store.artifacts import Record
from flows.nodes import Recipe
from flows.part import up_to
from flows.plan import Plan
from flows.trials import Axis, Search, Trial, Values, draw

Records = Mapping[str, Record]


def explore(
    first: Plan,
    replan: Callable[[list[Values]], Plan],
    make: Callable[[Plan], None],
    records: Records,
    failures: Collection[str] = (),
) -> None:
    """Run trials in batches. ``replan`` is the plan of these trials, ``make`` makes what a plan lacks, ``records`` are those of
    all steps that were made, and ``failures`` are the steps of trials that failed."""
    search, space = first.recipe.search, first.recipe.space
    study, drawn, going = study_of(search), [], {}
    while len(drawn) < search.count:
        batch = {}
        for number in range(len(drawn), min(len(drawn) + search.together, search.count)):
            batch[number], values = ask(study, search, space, number)
            drawn.append(values)
        plan = replan(drawn)
        rungs = rungs_of(plan.recipe)
        going |= batch
        for place, rung in enumerate(rungs if search.stop else rungs[-1:], start=1 if search.stop else len(rungs)):
            whole = len(drawn) == search.count and place == len(rungs)
            make(narrowed(plan, going.keys(), rungs[:place], whole, records))
            well = {trial.number for trial in survivors(plan, failures)}
            for number in sorted(batch.keys() & going.keys() - well):
                study.tell(batch[number], state=_ended("FAIL"))
                del going[number], batch[number]
            for number in sorted(batch.keys() & going.keys()):
                came_to = value_of(plan, plan.recipe.trials[number], rung, search.objective, records)
                if place == len(rungs):
                    study.tell(batch[number], came_to)
                    del batch[number]
                elif stops(batch[number], came_to, place):
                    study.tell(batch[number], state=_ended("PRUNED"))
                    del going[number], batch[number]


def left(first: Plan, replan: Callable[[list[Values]], Plan]) -> bool:
    """Whether a recipe has anything left to make; a search is followed as far as it is there."""
    if not (search := first.recipe.search) or not search.decides or not first.due and search.known == search.count:
        return bool(first.due)
    records: dict[str, Record] = {}

    def look(plan: Plan) -> None:
        if plan.due:
            raise _Missing
        records.update({step.id: step.record for step in plan.steps})

    try:
        explore(first, replan, look, records)
    except _Missing:
        return True
    return False


class _Missing(Exception):
    """Something is not there yet."""


def study_of(search: Search) -> Any:
    """An empty study in memory. Optuna's own randomness counts where it draws; what is drawn here is told to it."""
    import optuna

    from tasks.metrics import METRICS

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if METRICS[search.objective].better == "higher" else "minimize"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.together, constant_liar=True)
    pruner = {
        None: optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=search.together),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    }[search.stop]()
    return optuna.create_study(direction=direction, sampler=sampler, pruner=pruner)


def ask(study: Any, search: Search, space: Mapping[str, Axis], number: int) -> tuple[Any, Values]:
    """A trial of the study, and its values. The known ones are the recipe's own, which it is told."""
    if isinstance(search.trials, list):
        known: Values | None = search.trials[number]
    else:
        known = {path: draw(axis, search.seed, number, path) for path, axis in space.items()} if number < search.known else None
    if known is not None:
        study.enqueue_trial({path: _plain(space[path], value) for path, value in known.items()})
    asked = study.ask({path: _distribution(axis) for path, axis in space.items()})
    return asked, known or {path: _value(axis, asked.params[path]) for path, axis in space.items()}


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.choices:
        return CategoricalDistribution(range(len(axis.choices)))  # by position: a choice may be a method with its fields
    kind = IntDistribution if axis.whole else FloatDistribution
    return kind(axis.low, axis.high, log=axis.log)


def _plain(axis: Axis, value: Any) -> Any:
    return axis.choices.index(value) if axis.choices else value


def _value(axis: Axis, plain: Any) -> Any:
    return axis.choices[plain] if axis.choices else axis.settled(plain)


def _ended(how: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[how]


def stops(asked: Any, came_to: float, place: int) -> bool:
    """Whether a trial goes no further. Each stage is a rung: successive halving counts them 1, 2, 4 ..."""
    asked.report(came_to, 2 ** (place - 1))
    return asked.should_prune()


def rungs_of(recipe: Recipe) -> list[str]:
    """The stages of the trials that make models, by their base ids, in order."""
    on_trial = {id for trial in recipe.trials for id in trial.nodes}
    return list(dict.fromkeys(node.base for node in recipe.models() if node.id in on_trial))


def narrowed(plan: Plan, numbers: Iterable[int], rungs: Sequence[str], whole: bool, records: Records) -> Plan:
    """The part of a plan that these trials need up to the last of these rungs; with ``whole`` what is on no trial, too.
    What was made since the plan was has its record."""
    recipe = plan.recipe
    after = set(rungs_of(recipe)) - set(rungs)
    on_trial = {id for trial in recipe.trials for id in trial.nodes}
    mine = {id for trial in recipe.trials if trial.number in set(numbers) for id in trial.nodes}
    loose = {node.id for node in recipe.nodes if whole and not node.measures} - on_trial
    part = up_to(recipe, {node.id for node in recipe.nodes if node.id in mine and node.base not in after} | loose)
    kept = {node.id for node in part.nodes}
    steps = (replace(step, record=records.get(step.id, step.record)) for step in plan.steps if step.id in kept)
    return replace(plan, recipe=part, steps=tuple(steps))


def survivors(plan: Plan, failures: Collection[str]) -> list[Trial]:
    """The trials of which nothing failed."""
    failed = {plan.by_id[id].node.measures or id for id in failures if id in plan.by_id}
    return [trial for trial in plan.recipe.trials if failed.isdisjoint(trial.nodes)]


def value_of(plan: Plan, trial: Trial, rung: str, objective: str, records: Records) -> float:
    """What a trial's models of one stage came to, on average over the branches of grids."""
    recipe = plan.recipe
    models = {node.id for node in recipe.models() if node.id in trial.nodes and node.base == rung}
    found = {}
    for node in recipe.nodes:
        if (node.measures or node.id) in models and objective in records[node.id].metrics:
            found[node.measures or node.id] = records[node.id].metrics[objective]
    if not found:
        raise ValueError(f"recipe.search.objective: {objective} of {rung} was not measured; name it under evaluate")
    return statistics.fmean(found.values())
