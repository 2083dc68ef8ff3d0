"""A flow run that a Prefect server asked for, in a process of its own: Prefect's engine, by the settings it finds there."""

from __future__ import annotations

import runpy

from prefect.context import refresh_global_settings_context
from prefect.logging.configuration import setup_logging

from flows import pipeline

FLOWS = (pipeline.pipeline,)  # what the engine is going to import

if __name__ == "__main__":
    refresh_global_settings_context()  # a copy of the warm process has those that it read when it imported Prefect
    setup_logging()
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
