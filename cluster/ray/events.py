"""What a job tells while it runs, a class per kind of event: as lines of its output, and as lines of a stored history."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from cluster.ray.lines import format_line, parse_line


@dataclass(frozen=True)
class Event:
    """Which artifact it is about, and when it was told in ms; filled in just before it is told."""

    address: str = field(default="", kw_only=True)
    timestamp: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Metrics(Event):
    """One point of the stage's curves."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Progress(Event):
    """``done`` of ``total`` units (0: unknown)."""

    done: int
    total: int
    unit: str
    note: str = ""

    def speed(self, since: int, done: int) -> tuple[str, str]:
        """Units per second after ``done`` of them were done at ``since`` (milliseconds), in digits enough to see it move, and
        minutes that are left; empty where it cannot be told yet."""
        seconds, more = (self.timestamp - since) / 1000, self.done - done
        if seconds <= 1 or more <= 0:
            return "", ""
        rate = more / seconds
        minutes, rest = divmod(int((self.total - self.done) / rate), 60)
        return (
            f"{rate:,.{0 if rate >= 100 else 1 if rate >= 1 else 2}f} {self.unit}/s",
            f"{minutes}:{rest:02d} left" if self.total else "",
        )


@dataclass(frozen=True)
class Note(Event):
    """A line for people."""

    text: str


@dataclass(frozen=True)
class Published(Event):
    """The artifact is in the store."""

    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Failed(Event):
    """``final``: the input is at fault, and trying again cannot help. ``aside``: the address of a damaged input that was
    quarantined. ``shared``: a store, a disk or a service is at fault, which other stages need as well."""

    message: str
    final: bool
    aside: str = ""
    shared: bool = False


KINDS = {kind.__name__.lower(): kind for kind in (Metrics, Progress, Note, Published, Failed)}
STAMP = ("address", "timestamp")  # stand last


def to_json(event: Event) -> dict[str, Any]:
    own = {name: value for name, value in vars(event).items() if name not in STAMP}
    return {"event": type(event).__name__.lower(), **own, **{name: getattr(event, name) for name in STAMP}}


def from_json(told: dict[str, Any]) -> Event | None:
    """None for what is no event: another program's line that happens to bear the mark."""
    fields = dict(told)
    try:
        return KINDS[fields.pop("event")](**fields)
    except (KeyError, TypeError):
        return None


def format_event(event: Event) -> str:
    return format_line(to_json(event))


def parse_event(line: str) -> Event | None:
    told = parse_line(line)
    return None if told is None else from_json(told)


def print_event(event: Event) -> None:
    print(format_event(event), flush=True)


def print_note(address: str, text: str) -> None:
    """A line for people, about what is made at ``address``."""
    print_event(Note(text, address=address, timestamp=int(time.time() * 1000)))
