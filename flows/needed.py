"""What of a store is needed, and what is not. Pure reading; ``winnow gc`` shows it and asks.

Needed is what a run that MLflow lists stands on, whatever became of the run, what a registered model is, what is pinned,
what a recipe that was named stands on, and all that those were made from. Delete a run in MLflow, and what it alone stood
on is needed no longer. What no run of this MLflow ever named may be another home's: it is told apart, as is every artifact
of a store that other MLflows' runs stand on too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

from cluster.lock import locked
from cluster.profile import home
from cluster.runs import DIGITS, Standing
from cluster.store.leftovers import works
from cluster.store.local import Store
from cluster.store.owners import reap, size_of

Kind = Literal["artifact", "scratch", "aside", "leftover"]


class Item(NamedTuple):
    """Something that may go: ``strange`` where no run of this MLflow ever named it."""

    kind: Kind
    place: str  # an address, or where it lies
    bytes: int
    why: str
    strange: bool = False


class Survey(NamedTuple):
    items: list[Item]
    kept: int  # artifacts
    kept_bytes: int


def undisturbed() -> AbstractContextManager[None]:
    """No collection in this home while a run plans and has not told MLflow yet what it stands on."""
    return locked(home() / "locks" / "gc", shared=True)


def survey(store: Store, scratch: Path, standing: Standing, keys: Iterable[str], others: bool = False) -> Survey:
    """Everything in a store and a scratch, judged. ``keys`` are needed beside what MLflow says. With ``others``, whose runs
    stand on this store too and are not known here, every artifact may be theirs."""
    records = {address: store.sound(address) for address in store.addresses()}
    parents = {address[-DIGITS:]: record.parent_addresses for address, record in records.items() if record}
    needed = _closed({*standing.needed, *keys, *(pin[-DIGITS:] for pin in store.pins())}, parents)
    for run in standing.deleted:
        if any(address[-DIGITS:] in run and _lives(folder) for address, folder in works(scratch)):
            needed = _closed({*needed, *run}, parents)  # a job goes on though its run was deleted
    known = frozenset().union(*standing.deleted)
    kept, kept_bytes, items = 0, 0, []
    for address, record in records.items():
        if record is None or address[-DIGITS:] in needed:
            kept += 1
            kept_bytes += _bytes(record)
        else:
            items.append(_item("artifact", address, _bytes(record), frozenset() if others else known))
    items += _scratch(store, scratch, needed, known)
    items += [Item("aside", place, store.forget(place), "was damaged and is kept aside") for place in store.aside()]
    items += [Item("leftover", place, size, "a publisher that died left it") for place, size in store.leftovers().items()]
    return Survey(items, kept, kept_bytes)


def _scratch(store: Store, scratch: Path, needed: set[str], known: frozenset[str]) -> Iterator[Item]:
    """Scratch of stages that are published, and of others that no run needs. What a living process owns is left out."""
    for address, folder in works(scratch):
        done = store.done(address) is not None
        if folder.exists() and (done or address[-DIGITS:] not in needed) and not _lives(folder):
            if done:
                yield Item("leftover", str(folder), size_of(folder), "its stage is published")
            else:
                yield _item("scratch", str(folder), size_of(folder), known)


def _item(kind: Kind, place: str, size: int, known: frozenset[str]) -> Item:
    if place[-DIGITS:] in known:
        return Item(kind, place, size, "only runs deleted in MLflow stood on it")
    return Item(kind, place, size, "no run of this MLflow names it, but others may", strange=True)


def _closed(keys: set[str], parents: Mapping[str, Mapping[str, str]]) -> set[str]:
    """Keys and all that they were made from."""
    more = set(keys)
    while more:
        more = {address[-DIGITS:] for key in more for address in parents.get(key, {}).values()} - keys
        keys = keys | more
    return keys


def _lives(folder: Path) -> bool:
    return reap(folder, remove=False) is None


def _bytes(record) -> int:
    return sum(entry["bytes"] for entry in record.files.values()) if record else 0
