"""Damaged artifacts are moved to a quarantine folder, under a name with the time, and from then on count as missing.

A run needs artifacts and not errors, so it asks a store with `done` and `take`: damage that they meet is moved out of the
way, and the artifact is made again like any that is missing. Whoever only reads (export, verify, plan) moves nothing and is
told. Damage is looked at twice before anything is moved: another process may have mended it, or the first read was wrong.

    <root>/.quarantine/<stage>/<label>-<key12>.<time>, and beside it, in the same name with .txt, what was wrong
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Protocol

from cluster.store.artifacts import Artifact, CorruptArtifact, Record, address_of

FOLDER = ".quarantine"


class Healing(Protocol):
    """The part of every store that deals with damage, by these four of its methods."""

    url: str

    def record(self, what: Artifact | str) -> Record | None: ...

    def fetch(self, what: Artifact | Record | str) -> Path: ...

    def verify(self, record: Record) -> list[str]: ...

    def _set_aside(self, address: str, found: list[str]) -> str:
        """Move one address out of the way, with what was found wrong; where to, empty if another process was first."""

    def damage(self, address: str) -> list[str]:
        """Everything wrong with what lies at an address, its record included; rereads every byte."""
        try:
            record = self.record(address)
        except CorruptArtifact as error:
            return [str(error).removeprefix(f"{self.url}/{address}/")]
        return self.verify(record) if record else []

    def done(self, what: Artifact | str) -> Record | None:
        """The done check of a run: what has no sound record is to be made, and `publish` replaces it."""
        try:
            return self.record(what)
        except CorruptArtifact:
            return None

    def take(self, what: Artifact | Record | str) -> Path:
        """`fetch` for a run: what is damaged is kept aside before the error, so the next attempt makes it anew."""
        try:
            return self.fetch(what)
        except CorruptArtifact:
            address = address_of(what)
            if line := self.quarantine(address):
                raise CorruptArtifact(line, address, aside=address) from None
            return self.fetch(address)

    def quarantine(self, what: Artifact | str) -> str:
        """Move what is damaged out of the way of a new one; the line that tells of it, empty where nothing is wrong."""
        address = address_of(what)
        seen, found = self.done(address), self.damage(address)
        if not found or self.done(address) != seen:  # another process has made it anew meanwhile
            return ""
        try:
            where = self._set_aside(address, found)
        except OSError as error:
            problem = f"{address} is damaged ({found[0]}) and cannot be kept aside ({error.strerror or error})"
            raise CorruptArtifact(f"{problem}; run winnow discard {address} as somebody who may", address) from error
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{address} was damaged ({found[0]}{more}) and is kept aside as {where}" if where else ""

    def sound(self, address: str) -> Record | None:
        """The record if it can be read. One that cannot must not hide the others: a line on stderr tells of it."""
        try:
            return self.record(address)
        except CorruptArtifact as error:
            warn(f"{error}; left out. winnow verify --all lists what is damaged")
            return None


@cache
def warn(line: str) -> None:
    """One line on stderr, and each line once in a process, however often a store is read."""
    print(f"winnow: {line}", file=sys.stderr, flush=True)


def place_for(address: str) -> str:
    """Where an address goes that is moved aside now, below the root of its store."""
    return f"{FOLDER}/{address}.{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
