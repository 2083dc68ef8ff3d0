"""Tells Prefect what a run published, as events that automations may start on."""

from __future__ import annotations

import uuid

from cluster.store.artifacts import Record
from flows.conductor import Watcher
from flows.messenger import PUBLISHED
from flows.plan import Step

NAMESPACE = uuid.UUID("6f0e1d3c-55a3-4f0a-9b77-6a1d6a0f3e5b")  # of the ids of our events


class Announcer(Watcher):
    """A watcher of a flow's run that tells Prefect what was made. An artifact is told of once, whoever tells it."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def finished(self, step: Step, record: Record, overhead: float) -> None:
        if step.cached:
            return
        from prefect.events import emit_event
        from prefect.runtime import deployment

        resource = {
            "prefect.resource.id": f"winnow.artifact.{record.address.replace('/', '.')}",
            "prefect.resource.name": record.address,
            "winnow.stage": record.stage,
            "winnow.key": record.key,
            "winnow.address": record.address,
            "winnow.recipe": self.recipe,
            "winnow.deployment": deployment.name or "none",
        }
        id = uuid.uuid5(NAMESPACE, f"{record.key} {record.created}")
        emit_event(PUBLISHED, resource, payload={"metrics": record.metrics, "seconds": record.seconds}, id=id)
