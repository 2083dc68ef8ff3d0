"""``winnow gc``, ``pin`` and ``unpin``: shows what nothing needs, with its bytes, and removes it when told to.

Looking and removing happen while no run of this home is planning: what a run finds when it plans is there until it ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.options import ArtifactArgument, JsonOption, ProfileOption, console, errors, store_of
from flows.upkeep import agrees

if TYPE_CHECKING:
    from cluster.profile import Profile
    from cluster.store.local import Store
    from flows.needed import Item, Survey


def gc(
    recipes: Annotated[list[str] | None, typer.Argument(help="recipes to keep all artifacts of: paths, or names")] = None,
    profile: ProfileOption = "local",
    yes: Annotated[bool, typer.Option("--yes", help="remove without asking")] = False,
    strangers: Annotated[
        bool, typer.Option("--strangers", help="also what this MLflow knows nothing of, and others may")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what no run, registered model, pin or named recipe needs, what dead processes left, and what is kept aside, each
    with its bytes; remove it when told to. Without a terminal it only looks, unless --yes is given."""
    from cluster.lock import locked
    from cluster.profile import home, load_profile
    from cluster.tracking import tracking_uri

    where, store = load_profile(profile), store_of(profile)
    found = _survey(where, store, recipes or [])
    going = [item for item in found.items if strangers or not item.strange]
    if not as_json:
        _show(found, going, store, tracking_uri(where.mlflow.tracking_uri))
    remove = yes or (not as_json and bool(going) and sys.stdin.isatty() and agrees(f"remove {_sum(going)} for good? [y/N] "))
    if remove and going:
        with locked(home() / "locks" / "gc"):
            again = set(_survey(where, store, recipes or []).items)  # a run may have begun meanwhile
            going = [item for item in going if item in again]
            for item in going:
                _remove(item, store)
    if as_json:
        print(json.dumps(_told(found, going, store, remove)))
    elif going:
        text = f"removed {_sum(going)}" if remove else "nothing was removed; the same command with --yes removes it"
        console.print(text, highlight=False)


def pin(artifact: ArtifactArgument, profile: ProfileOption = "local") -> None:
    """Keep an artifact and what it was made from, whatever becomes of the runs that stand on it."""
    store = store_of(profile)
    address = store.locate(artifact)
    store.pin(address)
    console.print(f"{address} is pinned", highlight=False)


def unpin(artifact: ArtifactArgument, profile: ProfileOption = "local") -> None:
    """Take a pin away; the artifact stays until winnow gc finds that nothing needs it."""
    from cluster.store.local import begun

    store, pins = store_of(profile), store_of(profile).pins()
    found = begun(pins, artifact)
    if len(found) != 1:
        which = "several pins begin with" if found else "no pin begins with"
        raise ValueError(f"{which} {artifact!r}; {'choose one of ' + ', '.join(pins) if pins else 'nothing is pinned'}")
    store.unpin(found[0])
    console.print(f"{found[0]} is pinned no longer", highlight=False)


def _survey(where: Profile, store: Store, recipes: list[str]) -> Survey:
    from cluster.runs import DIGITS, Runs
    from cluster.tracking import tracker, tracking_uri
    from flows.needed import survey
    from flows.plan import make_plan
    from flows.recipe import load_recipe

    plans = [make_plan(load_recipe(recipe), store) for recipe in recipes]
    keys = {step.artifact.key[:DIGITS] for plan in plans for step in plan.steps}
    uri = tracking_uri(where.mlflow.tracking_uri)
    others = set(store.trackers()) - {tracker(uri)}
    if others:
        errors.print(f"runs of other MLflows stand on this store too: {', '.join(sorted(others))}", soft_wrap=True)
    return survey(store, Path(where.scratch), Runs(uri).standing(), keys, bool(others))


def _remove(item: Item, store: Store) -> None:
    from cluster.store.owners import reap

    if item.kind == "artifact":
        store.discard(item.place)
    elif item.kind == "aside":
        store.forget(item.place, remove=True)
    elif "://" in item.place:
        store.leftovers(remove=True)
    else:
        reap(Path(item.place), remove=True)


def _show(found: Survey, going: list[Item], store: Store, uri: str) -> None:
    from cluster.tracking import without_login
    from flows.display import size

    table = Table(caption_justify="left")
    for title in ("what", "where", "bytes", "why"):
        table.add_column(title, justify="right" if title == "bytes" else "left", overflow="fold")
    for item in sorted(going, key=lambda item: (item.kind, -item.bytes)):
        table.add_row(item.kind, item.place, size(item.bytes), item.why)
    if going:
        console.print(table)
    kept = f"{found.kept} artifacts, {size(found.kept_bytes)}, are needed"
    console.print(
        f"{store.url}: by MLflow at {without_login(uri)} {kept}; {_sum(going) if going else 'nothing'} can go",
        soft_wrap=True,
        highlight=False,
    )
    if rest := [item for item in found.items if item not in going]:
        errors.print(f"{_sum(rest)} may be others'; --strangers includes it")


def _told(found: Survey, going: list[Item], store: Store, removed: bool) -> dict[str, Any]:
    rest = [item for item in found.items if item not in going]
    return {
        "store": store.url,
        "needed": {"artifacts": found.kept, "bytes": found.kept_bytes},
        "unneeded": [item._asdict() for item in going],
        "strange": [item._asdict() for item in rest],
        "bytes": sum(item.bytes for item in going),
        "removed": removed,
    }


def _sum(items: list[Item]) -> str:
    from flows.display import size

    return f"{len(items)} thing{'s' if len(items) != 1 else ''}, {size(sum(item.bytes for item in items))},"
