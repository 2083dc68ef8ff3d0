"""The Prefect flow: a recipe's plan, made when its turn comes.

Prefect decides whether and when; its own caches stay off, since the store already knows what is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from cluster.profile import load_profile
from cluster.servers.settle import LABEL
from cluster.turn import Queue
from flows.conductor import heal
from flows.ending import OUTCOME, Outcome, Terminated
from flows.lazy import make_lazy
from flows.make import WATCHERS, Making
from flows.messenger import set_state
from flows.override import Setting, parse_settings
from flows.part import WHOLE, Part
from flows.plan import prepare
from flows.provenance import this_process
from flows.recipe import read_recipe
from flows.served import asked, plainly
from flows.title import title
from flows.trials import Values

__all__ = ["SAY", "WATCHERS", "pipeline", "refresh_global_settings_context", "run"]
make_lazy("torch")  # a run that the server starts comes by this module first
LOG = logging.getLogger(__name__)
SAY: ContextVar[Callable[[str], None]] = ContextVar("say", default=LOG.info)
PATIENCE, SERVED_PATIENCE = 30.0, 600.0  # seconds the end of a flow waits for its Prefect; nobody waits for a served one


def run_name() -> str:
    """What the user typed, else the recipe's own name, however it was given. A recipe that cannot be read is told of by the
    run itself."""
    try:
        return title(flow_run.name, str(read_recipe(flow_run.parameters.get("recipe") or "")[0].get("name") or ""))
    except ValueError:
        return flow_run.name


@flow(name="winnow", flow_run_name=run_name, validate_parameters=False, persist_result=False)
def pipeline(
    recipe: str = "",
    profile: str = "local",
    only: str | None = None,
    until: str | None = None,
    fields: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
) -> Any:
    """Run a recipe. ``recipe`` is a path, the name of a shipped recipe, or YAML text; ``profile`` a path or a name. ``only``
    names a stage to make alone, ``until`` one to stop after. ``fields`` is what a deployment's form says, ``overrides`` are
    settings of single fields. A deployment has its own recipe, as text; paths of corpora and models in it must be absolute,
    since the server has no directory of the user's."""
    part, outcome = Part(only, until), OUTCOME.get(Outcome())
    if deployment.id is not None:
        made = plainly(
            lambda: heal(
                lambda: run(recipe, profile, served=True, part=part, settings=asked(recipe, fields or {}, overrides or []))
            )
        )
        _wait_for_prefect(outcome)
        return made
    try:
        outcome.summary = heal(lambda: run(recipe, profile, part=part, settings=parse_settings(overrides or [])))
        _wait_for_prefect(outcome)
        return outcome.summary
    except (KeyboardInterrupt, Terminated, TerminationSignal) as interruption:
        outcome.interruption = interruption
        return Cancelled(message="stopped; the same command goes on")


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
    if flow_run.id:
        _sign(flow_run.id)
    where = load_profile(profile)

    def plan_anew(trials: Sequence[Values] = ()) -> Any:
        return prepare(recipe, where, served, part, settings, list(trials))

    plan, store = plan_anew()
    if here or not (plan.due or plan.recipe.decides):
        return Making(plan, store, where, here, plan_anew).run()
    with Queue.of(where).turn(plan.recipe.name, where.runs, _wait) as waited:
        if waited:  # who was ahead may have made some of it
            plan, store = plan_anew()
            if flow_run.id:
                set_state(flow_run.id, "Running")
        return Making(plan, store, where, here, plan_anew).run()


def _wait(text: str) -> None:
    """Tell whoever started the run, on the terminal, the run's page and in its log, that it waits and for whom."""
    SAY.get()(text)
    if flow_run.id:
        get_run_logger().info(text)
        set_state(flow_run.id, "Waiting", text)


def _sign(id: str) -> None:
    """Say in Prefect which process runs this flow: when it is gone, whoever looks after the servers closes the run."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(id), {LABEL: this_process()})


def _wait_for_prefect(outcome: Outcome) -> None:
    """A Prefect that died is back in a moment, and then hears how the flow ended. One that stays away is not asked again:
    its client would ask for five minutes, while whoever started the run waits for a result that is there."""
    deadline = time.monotonic() + (SERVED_PATIENCE if deployment.id else PATIENCE)
    while True:
        with get_client(sync_client=True) as client:
            if client.api_healthcheck() is None:
                return
        if time.monotonic() > deadline:
            outcome.untold, get_current_settings().client.max_retries = True, 0
            return
        time.sleep(1)
