"""What a stage tells while it runs: passed on as it comes, its curves kept so that a resumed run has all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from cluster.ray.events import format_event, parse_event
from tasks.stage import Event

HISTORY = "history.jsonl"


class History:
    """A stage's events, told as they come; its curves are also kept in ``path``."""

    def __init__(self, path: Path, address: str, tell: Callable[[Event], None]) -> None:
        self.path, self.address, self.tell = path, address, tell
        self.last_progress = 0.0

    def report(self, event: Event) -> None:
        if event["event"] == "progress" and not self._time_for_progress(event):
            return
        event = {**event, "address": self.address, "timestamp": int(time.time() * 1000)}
        self.tell(event)
        if event["event"] == "metrics":
            with self.path.open("a") as file:
                file.write(format_event(event) + "\n")

    def _time_for_progress(self, event: Event) -> bool:
        due = time.monotonic() - self.last_progress > 0.5 or event["done"] == event["total"]
        if due:
            self.last_progress = time.monotonic()
        return due

    def write(self, target: Path) -> None:
        """Write the curves to the artifact, each step once: the last telling of a step that was run again counts.

        A line that an attempt did not finish writing (killed, disk full) is passed over.
        """
        if self.path.exists():
            steps = {event["step"]: event for line in self.path.open() if (event := parse_event(line))}
            target.write_text("".join(json.dumps(steps[step]) + "\n" for step in sorted(steps)))
