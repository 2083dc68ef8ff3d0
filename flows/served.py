"""A run that a Prefect server asked for: is it one its deployment may make, what did the form say, and how did it end.

What a user can mend ends the run as Failed, with that one line as the state's message and no trace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun, FailedRun
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Failed

from cluster.store.artifacts import CorruptArtifact
from flows.conductor import StageFailed
from flows.form import changes
from flows.override import Setting, parse_settings
from flows.promotion import register
from flows.recipe import read_recipe
from flows.schedules import Skipped, check_alone, check_run
from tasks.refusal import refused

Made = TypeVar("Made")


def asked(recipe: str, fields: Mapping[str, Any], overrides: Sequence[str]) -> list[Setting]:
    """The settings of a deployment's run, after the check that it is one the deployment may make."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run.id)
        check_run(client.read_deployment(deployment.id), run)
        check_alone(client, run)
    return [*changes(read_recipe(recipe)[0], fields), *parse_settings(overrides)]


def plainly(attempt: Callable[[], Made]) -> Made | Any:
    """What the attempt returns, or the state of a run that failed for a reason that one line says."""
    logger = get_run_logger()
    getattr(logger, "logger", logger).addFilter(_untraced)
    try:
        return attempt()
    except Skipped as reason:
        logger.info("%s", reason)
        return Cancelled(name="Skipped", message=str(reason))
    except Exception as error:
        if not (isinstance(error, (StageFailed, CorruptArtifact, OSError)) or refused(error)):
            raise
        line = " ".join(str(error).split())
        logger.error("%s", line)
        return Failed(message=line)


def _untraced(record: logging.LogRecord) -> bool:
    """Leaves out what Prefect's engine logs of a run that ended in a state it was given: forty lines of its own code."""
    return not (record.exc_info and isinstance(record.exc_info[1], (FailedRun, CancelledRun)))


@flow(name="winnow-promote", validate_parameters=False, persist_result=False)
def promotion(model: str = "", alias: str = "", name: str = "", force: bool = False, profile: str = "local") -> dict[str, Any]:
    """Give a model an alias in MLflow's registry."""
    return plainly(lambda: register(model, alias, name, profile, force))
