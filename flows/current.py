"""Which run of Prefect's is under way in this process. Its import takes seconds: where nobody has imported it, none is."""

from __future__ import annotations

import sys


def flow_run() -> str:
    """Its id; empty where there is none."""
    runtime = sys.modules.get("prefect.runtime")
    return str(runtime.flow_run.id or "") if runtime else ""


def task_run() -> str | None:
    """The id of the task that is calling."""
    runtime = sys.modules.get("prefect.runtime")
    return runtime.task_run.id if runtime else None
