"""What a store remembers beside its artifacts: which of them are pinned, and whose runs stand on them."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote, unquote

from cluster.store.artifacts import address_of

PINS, TRACKERS = ".pins", ".trackers"
LONGEST = 200  # characters of a file's name


class Marks(Protocol):
    """Empty files by kind and name, however a store keeps them."""

    def marks(self, kind: str) -> list[str]:
        """All names of a kind, in order."""

    def mark(self, kind: str, name: str) -> None: ...

    def unmark(self, kind: str, name: str) -> None: ...

    def pins(self) -> list[str]:
        """Addresses that somebody wants kept, whatever needs them."""
        return self.marks(PINS)

    def pin(self, address: str) -> None:
        self.mark(PINS, address_of(address))

    def unpin(self, address: str) -> None:
        self.unmark(PINS, address_of(address))

    def trackers(self) -> list[str]:
        """The MLflows that know of runs that stand on artifacts of this store."""
        return [unquote(name) for name in self.marks(TRACKERS)]

    def note_tracker(self, name: str) -> None:
        if name not in self.trackers():
            self.mark(TRACKERS, quote(name, safe="")[:LONGEST])
