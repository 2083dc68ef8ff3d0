"""Claims: what the models of a recipe should show, and whether they do.

    claims:
      - says: RigL is at least as good as SET, SET as static masks
        stage: pretrain
        order: [rigl, set, static]

``order`` names groups of models from best to worst, each by the labels of its branch but for the seed, or, where it has no
others, by the id of its stage; the models of a group differ by seed only; a group that has none stands against every seed of
another. A member may be a list, which means the best of it, or ``{mean: [a, b, c]}``, their mean at each seed. ``slack`` is how
much worse (as a share) the better one may be: ``order: [ours, [a, b, c]]`` with ``slack: 0.01`` says that ours is near the
best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flows.sweep import Branch
from tasks.metrics import METRICS

SEED = "seed"
Numbers = dict[str, float]  # of one group: seed label -> value
Member = str | list[str] | dict[Literal["mean"], Annotated[list[str], Field(min_length=2)]]


def group_of(branch: Branch) -> str:
    """The labels of a branch but for its seed."""
    return "-".join(label for axis, label in branch.items() if axis != SEED)


def _group(base: str, branch: Branch) -> str:
    """What a claim calls the models of a stage that differ by seed only."""
    return group_of(branch) or base


def groups_of(models: Sequence[Mapping[str, Any]], metric: str = "perplexity") -> dict[str, list[float]]:
    """The models of a sweep by group, best first; empty where there is no sweep."""
    groups: dict[str, list[float]] = {}
    for model in models:
        if model["branch"] and metric in model:
            name = "-".join(filter(None, (model["base"], group_of(model["branch"]))))
            groups.setdefault(name, []).append(model[metric])
    return dict(sorted(groups.items(), key=lambda group: statistics.fmean(group[1])))


class Claim(BaseModel):
    """One claim about the models of a stage, or of several."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    says: str
    """The claim in words."""
    stage: str | list[str]
    """Id of the stage whose models are compared; a list compares those of several, whose groups differ in name."""
    order: list[Member] = Field(min_length=2)
    """Groups of models from best to worst, by the labels of their branch, or the id of a stage without branches; a list is the
    best of its members, {mean: [...]} the mean of them."""
    metric: str = "perplexity"
    """What is compared: the name of a metric."""
    paper: str = ""
    """What the paper reports, for people who compare: its models, numbers and table."""
    slack: float = Field(0.0, ge=0)
    """How much worse the better one may be, as a share."""

    def check(self, models: Sequence[tuple[str, Branch]], where: str) -> None:
        """Raise ValueError where the recipe makes no such models."""
        by_stage = {stage: [_group(base, branch) for base, branch in models if base == stage] for stage in self.stages()}
        if absent := [stage for stage, groups in by_stage.items() if not groups]:
            known = ", ".join(dict.fromkeys(base for base, _ in models))
            raise ValueError(f"recipe.{where}.stage: no stage {absent[0]!r} makes a model; choose one of {known}")
        groups = [group for its in by_stage.values() for group in dict.fromkeys(its)]
        for member in self.members():
            if member not in groups:
                known = ", ".join(dict.fromkeys(groups))
                raise ValueError(f"recipe.{where}.order: no group {member!r}; choose some of {known}")
            if groups.count(member) > 1:
                raise ValueError(f"recipe.{where}.order: several of its stages have a group {member!r}; name them apart")
        if self.metric not in METRICS:
            raise ValueError(f"recipe.{where}.metric: no metric {self.metric!r}; choose one of {', '.join(METRICS)}")

    def stages(self) -> list[str]:
        return [self.stage] if isinstance(self.stage, str) else self.stage

    def members(self) -> list[str]:
        return [name for member in self.order for name in _names(member)]

    def judge(self, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The verdict on summaries of models, each with its ``base``, ``branch`` and metrics."""
        sign = -1.0 if METRICS[self.metric].better == "higher" else 1.0
        groups = {name: self._numbers(models, name) for name in self.members()}
        order = [_named(groups, member) for member in self.order]
        pairs = [_compare(groups, sign, self.slack, better, worse) for better, worse in zip(order, order[1:], strict=False)]
        told = any(pair["error"] is not None for pair in pairs)  # of noise a single seed tells nothing
        holds, clear = (all(pair[word] for pair in pairs) for word in ("holds", "clear"))
        return {
            "says": self.says,
            "paper": self.paper,
            "metric": self.metric,
            "groups": {name: _describe(numbers) for name, numbers in groups.items()},
            "pairs": pairs,
            "holds": holds,
            "clear": clear,
            "verdict": ("holds" if holds else "does not hold")
            + ("" if clear else ", within noise" if told else ", by one seed"),
        }

    def _numbers(self, models: Sequence[Mapping[str, Any]], group: str) -> Numbers:
        return {
            model["branch"].get(SEED, ""): model[self.metric]
            for model in models
            if model["base"] in self.stages() and _group(model["base"], model["branch"]) == group
        }


def _names(member: Member) -> list[str]:
    return [member] if isinstance(member, str) else member["mean"] if isinstance(member, dict) else member


def _named(groups: dict[str, Numbers], member: Member) -> list[str]:
    """The groups that a member is the best of. A mean of groups becomes one more group, of the seeds that all of them have."""
    if not isinstance(member, dict):
        return _names(member)
    of = [groups[name] for name in member["mean"]]
    name = f"mean of {', '.join(member['mean'])}"
    shared = set.intersection(*(set(numbers) for numbers in of))
    groups[name] = {seed: statistics.fmean(numbers[seed] for numbers in of) for seed in sorted(shared)}
    return [name]


def _describe(numbers: Numbers) -> dict[str, Any]:
    values = list(numbers.values())
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "values": numbers}


def _compare(groups: Mapping[str, Numbers], sign: float, slack: float, better: list[str], worse: list[str]) -> dict[str, Any]:
    """One inequality, judged on the differences of equal seeds; clear where the mean is two standard errors from zero."""
    left, right = (_best(groups, sign, member) for member in (better, worse))
    ours, theirs = _at_seeds(groups[left], groups[right]), _at_seeds(groups[right], groups[left])
    shared = sorted(ours.keys() & theirs.keys())
    differences = [sign * (ours[seed] - theirs[seed] * (1 + sign * slack)) for seed in shared]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
    return {
        "better": left,
        "worse": right,
        "difference": mean,
        "error": error if math.isfinite(error) else None,
        "holds": mean <= 0,
        "clear": abs(mean) > 2 * error,
    }


def _at_seeds(numbers: Numbers, others: Numbers) -> Numbers:
    """The numbers of a group at the seeds of another: one that has no seeds is the same at each."""
    return dict.fromkeys(others, numbers[""]) if numbers.keys() == {""} else numbers


def _best(groups: Mapping[str, Numbers], sign: float, names: list[str]) -> str:
    return min(names, key=lambda name: sign * statistics.fmean(groups[name].values()))
