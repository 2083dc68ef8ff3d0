"""A run of a recipe, whoever began it: plan, wait for the turn, make what is missing, tell. Prefect is asked only by a run that
is a flow of its; one of which all is cached, or that goes on ``here``, does not import it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from cluster.profile import load_profile
from cluster.servers.settle import LABEL
from cluster.turn import Queue
from flows.current import flow_run
from flows.ending import ranks
from flows.make import Making
from flows.messenger import set_state
from flows.override import Setting
from flows.part import WHOLE, Part
from flows.plan import prepare
from flows.provenance import this_process
from flows.trials import Values

LOG = logging.getLogger(__name__)
SAY: ContextVar[Callable[[str], None]] = ContextVar("say", default=LOG.info)


def run(
    recipe: str,
    profile: str,
    here: bool = False,
    served: bool = False,
    part: Part = WHOLE,
    settings: Sequence[Setting] = (),
) -> dict[str, Any]:
    """The flow's body: plan, make what is missing, on the cluster or ``here`` in this process, tell MLflow, summarise. What
    needs the cluster waits for its turn."""
    if flow_run():
        _sign(flow_run())
    where = load_profile(profile).under(ranks()) if here else load_profile(profile)

    def plan_anew(trials: Sequence[Values] = ()) -> Any:
        return prepare(recipe, where, served, part, settings, list(trials))

    plan, store = plan_anew()
    if here or not (plan.due or plan.recipe.decides):
        return Making(plan, store, where, here, plan_anew).run()
    with Queue.of(where).turn(plan.recipe.name, where.runs, _wait) as waited:
        if waited:  # who was ahead may have made some of it
            plan, store = plan_anew()
            if flow_run():
                set_state(flow_run(), "Running")
        return Making(plan, store, where, here, plan_anew).run()


def _wait(text: str) -> None:
    """Tell whoever started the run, on the terminal, the run's page and in its log, that it waits and for whom."""
    SAY.get()(text)
    if flow_run():
        from prefect import get_run_logger

        get_run_logger().info(text)
        set_state(flow_run(), "Waiting", text)


def _sign(id: str) -> None:
    """Say in Prefect which process runs this flow: when it is gone, whoever looks after the servers closes the run."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(id), {LABEL: this_process()})
