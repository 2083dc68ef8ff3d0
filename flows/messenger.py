"""Brings artifacts and log lines to a Prefect run's page, beside the run and never in its way.

All of it is sent by one thread with short deadlines. A server that is gone costs one line: what a page could not be told is
dropped once too much of it waits, the latest state of an artifact being kept, and a server that comes back is told again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

LOG = logging.getLogger(__name__)
PUBLISHED = "winnow.artifact.published"  # an event of an artifact that a flow made
CLAIM_FAILED = "winnow.claim.failed"  # an event of a run whose claim does not hold
GATE_FAILED = "winnow.gate.failed"  # an event of a run with a model that does not reach what its recipe requires
FLOW = {"prefect.resource.role": "flow", "prefect.resource.name": "winnow"}
EVERY = 1.0  # seconds between two looks at what there is to send
AWAY = 10.0  # seconds until a server that did not answer is asked again
DEADLINE = 5.0  # seconds a request may take
LINES = 2000  # log lines that wait at most
AT_ONCE = 200  # log lines of one request


@dataclass
class Artifact:
    """Something on the page: what it is to show, and whether the server has it so."""

    key: str
    type: str
    data: Any
    description: str
    task_run: str | None
    id: str | None = None
    sent: bool = False


class Messenger:
    """Of one flow run. Every method returns at once; ``close`` waits a little for what is left."""

    def __init__(self, flow_run: str) -> None:
        self.flow_run = flow_run
        self._artifacts: dict[str, Artifact] = {}
        self._events: list[dict[str, Any]] = []
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._said = False
        self._thread = threading.Thread(target=self._run, name="messenger", daemon=True)
        self._thread.start()

    def show(self, key: str, type: str, data: Any, description: str = "", task_run: str | None = None) -> None:
        """Put an artifact on the page, or bring the one of this key up to date."""
        with self._lock:
            known = self._artifacts.setdefault(key, Artifact(key, type, data, description, task_run))
            known.data, known.description, known.sent = data, description, False

    def log(self, text: str, level: int = logging.INFO, task_run: str | None = None) -> None:
        line = {"name": "winnow", "level": level, "message": text, "timestamp": datetime.now(UTC).isoformat()}
        self._lines.append({**line, "flow_run_id": self.flow_run, "task_run_id": task_run})

    def emit(self, event: str, message: str) -> None:
        """An event of this run, for automations."""
        resource = {"prefect.resource.id": f"prefect.flow-run.{self.flow_run}"}
        made = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event, "resource": resource}
        related = [{**FLOW, "prefect.resource.id": "prefect.flow.winnow"}]
        self._events.append({**made, "related": related, "payload": {"message": message}})

    def close(self) -> None:
        """Send what is left, for as long as one request may take."""
        self._closing.set()
        self._thread.join(DEADLINE)

    def _run(self) -> None:
        while not self._closing.wait(EVERY):
            if not self._try():
                self._closing.wait(AWAY)
        self._try()

    def _try(self) -> bool:
        """Whether all could be sent. Whatever a client raises on the way, the page is not worth the run."""
        if not self._lines and not self._events and all(artifact.sent for artifact in self._artifacts.values()):
            return True
        try:
            self._send()
        except Exception as error:
            if not self._said:
                LOG.warning("the page of this run is not told further until Prefect answers: %s", _line(error))
            self._said = True
            return False
        self._said = False
        return True

    def _send(self) -> None:
        from prefect.client.orchestration import get_client

        with get_client(httpx_settings={"timeout": DEADLINE}, sync_client=True) as client:
            while self._lines:
                lines = [self._lines[index] for index in range(min(AT_ONCE, len(self._lines)))]
                client.request("POST", "/logs/", json=lines)
                for _ in lines:
                    self._lines.popleft()
            if self._events:
                client.request("POST", "/events", json=self._events)
                self._events.clear()
            for artifact in list(self._artifacts.values()):
                self._bring(client, artifact)

    def _bring(self, client: Any, artifact: Artifact) -> None:
        with self._lock:
            if artifact.sent:
                return
            shown = {"data": artifact.data, "description": artifact.description}
            artifact.sent = True
        try:
            if artifact.id:
                client.request("PATCH", f"/artifacts/{artifact.id}", json=shown)
            else:
                place = {"key": artifact.key, "type": artifact.type, "flow_run_id": self.flow_run}
                answer = client.request("POST", "/artifacts/", json={**place, "task_run_id": artifact.task_run, **shown})
                artifact.id = answer.json()["id"]
        except BaseException:
            artifact.sent = False
            raise


def set_state(flow_run: str, name: str, message: str = "") -> None:
    """Another name for a run that is running, while it waits. A server that is gone is not waited for."""
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    try:
        with get_client(httpx_settings={"timeout": DEADLINE}, sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run), Running(name=name, message=message), force=True)
    except Exception as error:
        LOG.warning("Prefect does not show that this run is %s: %s", name.lower(), _line(error))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
