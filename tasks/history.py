"""The events of a running stage: passed on as they come, the curves also kept, so that a resumed run has all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cluster.ray.events import Event, Metrics, Progress, format_event, from_json, parse_event, to_json

HISTORY = "history.jsonl"


class History:
    """A stage's events, told as they come; its curves are also kept in ``path``."""

    def __init__(self, path: Path, address: str, tell: Callable[[Event], None]) -> None:
        self.path, self.address, self.tell = path, address, tell
        self.last_progress = 0.0

    def report(self, event: Event) -> None:
        if isinstance(event, Progress) and not self._time_for_progress(event):
            return
        event = replace(event, address=self.address, timestamp=int(time.time() * 1000))
        self.tell(event)
        if isinstance(event, Metrics):
            with self.path.open("a") as file:
                file.write(format_event(event) + "\n")

    def _time_for_progress(self, event: Progress) -> bool:
        due = time.monotonic() - self.last_progress > 0.5 or event.done == event.total
        if due:
            self.last_progress = time.monotonic()
        return due

    def write(self, target: Path) -> None:
        """Write the curves to the artifact, each step once: the last telling of a step that was run again counts.

        A line that an attempt did not finish writing (killed, disk full) is passed over.
        """
        if self.path.exists():
            told = (parse_event(line) for line in self.path.open())
            steps = {event.step: event for event in told if isinstance(event, Metrics)}
            target.write_text("".join(json.dumps(to_json(steps[step])) + "\n" for step in sorted(steps)))


def read_history(text: str) -> list[Metrics]:
    """The curves of an artifact, from the text of its ``report/history.jsonl``."""
    told = (from_json(json.loads(line)) for line in text.splitlines())
    return [event for event in told if isinstance(event, Metrics)]
