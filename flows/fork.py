"""Forks: the recipe of an earlier run, with other fields from one stage on. All before that stage is that run's own.

What comes out is an ordinary recipe, kept in this home, which says what it was forked from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from cluster.documents import parse_yaml
from cluster.profile import home, load_profile
from cluster.runs import DIGITS, Runs
from cluster.store.durable import write
from cluster.tracking import tracking_uri
from flows.nodes import Recipe
from flows.options import errors, store_of
from flows.override import changed, parse_settings
from flows.part import Part, chosen
from flows.plan import Plan, make_plan
from flows.provenance import FOLDER
from flows.recipe import parse_recipe


def forked(run: str, at: str, settings: Sequence[str], name: str | None, profile: str) -> Path:
    """The file of the new recipe; what it reuses is said on stderr."""
    runs = Runs(tracking_uri(load_profile(profile).mlflow.tracking_uri))
    found = runs.find(run)
    if not settings:
        raise ValueError(f"fork: nothing would differ; give --set {at}.FIELD=VALUE")
    text, folder = runs.recipe(found), Path(found.data.tags.get(FOLDER) or Path.cwd())
    if not folder.is_dir():
        raise ValueError(f"fork: run {run} was made in {folder}, which is not here; fork it where its files are")
    os.chdir(folder)  # where its relative paths begin
    document = parse_yaml(text, f"recipe of run {run}")
    old = document["name"]
    made: dict[str, Any] = changed(document, parse_settings(settings))
    made["name"] = name or f"{old.removesuffix('-fork')}-fork"
    made["description"] = f"Forked from run {found.info.run_id} of {old} at {at}: {', '.join(settings)}."
    store, written = store_of(profile), yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
    before = make_plan(parse_recipe(document, text, folder), store)
    after = make_plan(parse_recipe(made, written, folder), store)
    _check(before, after, at, runs.stood_on(found))
    reused = [step.id for step in after.steps if step.cached]
    due = [step.id for step in after.due if not step.node.measures]
    errors.print(f"reused: {', '.join(reused) or 'nothing'}", soft_wrap=True, highlight=False)
    errors.print(f"to make: {', '.join(due) or 'nothing but evaluations' if after.due else 'nothing'}", highlight=False)
    path = home() / "forks" / f"{made['name']}-{hashlib.sha256(written.encode()).hexdigest()[:8]}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, written.encode())
    errors.print(f"recipe: {path}", soft_wrap=True, highlight=False)
    return path


def _check(before: Plan, after: Plan, at: str, stood_on: Set[str]) -> None:
    """Raise ValueError where something differs that does not come from the stage of the fork: by a setting, or because it is
    not now what the run stood on."""
    down = _downstream(after.recipe, set(chosen(after.recipe, Part(until=at), "--at")))
    for step in after.steps:
        was = before.by_id.get(step.id)
        if step.id not in down and (was is None or was.artifact.key != step.artifact.key):
            raise ValueError(f"--set changes {step.id}, which does not come from {at}; fork --at {step.node.base or step.id}")
        if stood_on and step.id not in down and step.artifact.key[:DIGITS] not in stood_on:
            raise ValueError(
                f"fork: {step.id} is not what the run stood on any more: a file it reads was changed, added or taken away, or "
                "Winnow makes it otherwise now; run the recipe itself to make all of it anew"
            )


def _downstream(recipe: Recipe, ids: set[str]) -> set[str]:
    for node in recipe.nodes:  # parents come before what they feed
        if node.measures in ids or ids & set(node.parents.values()):
            ids |= {node.id}
    return ids
