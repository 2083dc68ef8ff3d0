"""What the dead left on this machine's disks: half of a publication, and the scratch of a stage that is published.

The scratch of a stage that is not published is no leftover: the next run resumes from its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cluster.store.artifacts import ADDRESS
from cluster.store.local import Store
from cluster.store.owners import reap


def tidy(store: Store, scratch: Path) -> None:
    """Remove what no living process owns, before this one adds to it. Costs a listing of both."""
    store.tidy()
    for address, folder in works(scratch):
        if not folder.exists() or store.done(address):
            reap(folder, remove=True)


def works(scratch: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of every stage that has, or left, something in scratch."""
    names = {path.relative_to(scratch).as_posix().removesuffix(".lock") for path in scratch.glob("*/*")}
    yield from ((address, scratch / address) for address in sorted(filter(ADDRESS.fullmatch, names)))
