"""The Prefect flow: a recipe's plan, made when its turn comes.

Prefect decides whether and when; its own caches stay off, since the store already knows what is done.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment, flow_run
from prefect.settings import get_current_settings
from prefect.states import Cancelled

from flows.conductor import heal
from flows.ending import OUTCOME, Outcome, Terminated
from flows.lazy import make_lazy
from flows.override import parse_settings
from flows.part import Part
from flows.recipe import read_recipe
from flows.running import run
from flows.served import asked, plainly
from flows.title import title

__all__ = ["pipeline", "refresh_global_settings_context"]
make_lazy("torch")  # a run that the server starts comes by this module first
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
