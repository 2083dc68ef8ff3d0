"""A flow run that a Prefect server asked for, in a process of its own: Prefect's engine, by the settings it finds there."""

from __future__ import annotations

import os
import runpy
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import refresh_global_settings_context
from prefect.exceptions import ObjectNotFound
from prefect.logging.configuration import setup_logging
from prefect.states import Cancelled

from flows import pipeline

FLOWS = (pipeline.pipeline,)  # what the engine is going to import


def removed(client: SyncPrefectClient, run: UUID) -> bool:
    """Whether the deployment of a run went between the asking and the beginning. The run ends as skipped then; the engine
    would end as crashed, with a trace."""
    deployment = client.read_flow_run(run).deployment_id
    try:
        if deployment is not None:
            client.read_deployment(deployment)
            return False
    except ObjectNotFound:
        pass
    client.set_flow_run_state(run, Cancelled(name="Skipped", message="skipped: its deployment was removed"), force=True)
    return True


def main() -> None:
    refresh_global_settings_context()  # a copy of the warm process has those that it read when it imported Prefect
    setup_logging()
    with get_client(sync_client=True) as client:
        if removed(client, UUID(os.environ["PREFECT__FLOW_RUN_ID"])):
            return
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
