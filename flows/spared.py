"""What fails and costs not the whole run: a trial of a search costs that trial, a member of a soup that member.

A learning rate at which training diverges is what a search is there to find, and a soup has a mean without it. A soup of
fewer members is another artifact, so its recipe is planned anew (:func:`of_what_is_left`). A cluster or a store that is away,
and what is damaged, end the run as ever.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from cluster.store.artifacts import CorruptArtifact
from flows.conductor import StageFailed, Watcher
from flows.nodes import Node, Recipe
from flows.plan import Plan, Step
from tasks.stage import members

FEWEST = 2  # models that have a mean


class Spared:
    """Of one round of a plan: ``failures`` are those of the rounds before, by step. ``waiting`` are the merges that another
    round makes, of the members that are left."""

    def __init__(self, plan: Plan, watcher: Watcher, failures: Mapping[str, Exception] | None = None) -> None:
        self.plan, self.watcher = plan, watcher
        self.causes: dict[str, Exception] = dict(failures or {})  # by step, of all that cannot be made now
        self.waiting: list[str] = []

    def lost(self, step: Step) -> bool:
        """Whether a step cannot be made now, since it failed before, or lacks what failed. Raises StageFailed where it is a
        merge with too few members left, unless that is spared too."""
        if step.id in self.causes:
            return True
        cause = next((self.causes[id] for id in step.node.parents.values() if id in self.causes), None)
        if cause is None:
            return False
        lacking, left = _divided(step.node, self.causes, self._trials())
        if lacking and len(left) < FEWEST:
            self.failed(step, StageFailed(_too_few(step.node, lacking, left, self.causes), final=True))
        else:
            self.causes[step.id] = cause
            self.waiting += [step.id] if lacking else []
        return True

    def failed(self, step: Step, error: Exception) -> None:
        """Tell of a failure, or raise it where it is not a trial's or a member's own."""
        everybodys = isinstance(error, (CorruptArtifact, OSError)) or getattr(error, "shared", False)
        own = step.id in self.plan.on_trials or step.id in self.plan.on_members
        if not own or everybodys or getattr(error, "aside", ""):
            raise error
        self.causes[step.id] = error
        self.watcher.failed(step, error)

    def _trials(self) -> list[frozenset[str]]:
        return [frozenset(trial.nodes) for trial in self.plan.recipe.trials]


def of_what_is_left(recipe: Recipe, failures: Mapping[str, Exception]) -> tuple[Recipe, dict[str, str]]:
    """The recipe with merges that take the members that are left, where those are enough, and of each such merge a line that
    names who is lost. What failed, and what lacks it, stays as it is."""
    trials = [frozenset(trial.nodes) for trial in recipe.trials]
    lost: dict[str, Exception] = {}
    nodes, lines, first = [], {}, dict[str, tuple[str, str]]()
    for node in recipe.nodes:  # parents come before what they feed
        lacking, left = _divided(node, lost, trials)
        if lacking and len(left) >= FEWEST:
            first[node.id] = members(node.parents, node.stage.plural)[0], left[0]
            count = f"{len(left)} of its {len(lacking) + len(left)} members"
            lines[node.id] = f"goes on with {count}, without {_named(lacking, lost)}"
            node = replace(node, parents=_parents(node, left))
        elif (owner := node.measures or node.parents.get("model")) in first and node.stage.yields == "metrics":
            node = replace(node, parents=_compared(node.parents, *first[owner]))
        cause = failures.get(node.id) or next((lost[id] for id in node.parents.values() if id in lost), None)
        if cause is not None:
            lost[node.id] = cause
        nodes.append(node)
    return replace(recipe, nodes=tuple(nodes)), lines


def _divided(node: Node, lost: Collection[str], trials: Collection[frozenset[str]]) -> tuple[list[str], list[str]]:
    """The members of a merge that are lost, and those that are left; none of either where it is no merge, lacks none, lacks
    more than members, or is on a trial with what it lacks: then it is the trial that is lost, as it is compared with others."""
    taken = members(node.parents, node.stage.plural) if node.stage.plural else []
    lacking = [id for id in taken if id in lost]
    others = set(node.parents.values()) - set(taken)
    together = any(node.id in trial and not trial.isdisjoint(lacking) for trial in trials)
    if not lacking or together or any(id in lost for id in others):
        return [], []
    return lacking, [id for id in taken if id not in lost]


def _parents(node: Node, left: list[str]) -> dict[str, str]:
    role = node.stage.plural
    numbered = {f"{role}_{number}" for number in range(len(node.parents))}
    others = {name: id for name, id in node.parents.items() if name not in numbered}
    return others | {f"{role}_{number}": id for number, id in enumerate(left)}


def _compared(parents: Mapping[str, str], before: str, now: str) -> dict[str, str]:
    """The parents of an evaluation of a soup, which is compared with its first member."""

    def renamed(id: str) -> str:
        return now if id == before else now + id.removeprefix(before) if id.startswith(f"{before}.") else id

    return {role: renamed(id) for role, id in parents.items()}


def _too_few(node: Node, lacking: list[str], left: list[str], causes: Mapping[str, Exception]) -> str:
    count = f"{len(left)} of {len(lacking) + len(left)} members left"
    return f"{node.id}: {count}, and a {node.name} takes {FEWEST} or more; without {_named(lacking, causes)}"


def _named(lacking: list[str], causes: Mapping[str, Exception]) -> str:
    """Who is lost and why, in one line."""
    return "; ".join(f"{id} ({' '.join(str(causes[id]).removeprefix(f'{id}: ').split())})" for id in lacking)
