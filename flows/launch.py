"""Runs a recipe from a terminal: as the Prefect flow with the servers it needs, or right here without any."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.lock import locked
from cluster.profile import Profile, load_profile
from cluster.store import Store
from flows.display import Display
from flows.plan import Plan, prepare

Summary = dict[str, Any]


def launch(recipe: str, profile: str, console: Console, quiet: bool, here: bool) -> tuple[Plan, Summary | None]:
    """The plan as it was before, and the summary after; no summary on ranks that only help."""
    where = load_profile(profile)
    plan, store = prepare(recipe, where)
    recipe = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    display = Display(console, quiet)
    if here:
        _make_here(plan, store, where, display)
        if int(os.environ.get("RANK", 0)):
            return plan, None
    with _servers(where, console, needed=bool(plan.due) and not here):
        return plan, _run_pipeline(recipe, profile, display, as_flow=bool(plan.due) and not here)


def _make_here(plan: Plan, store: Store, profile: Profile, display: Display) -> None:
    """Make what is due in this process. Under torchrun every rank trains; the rest is rank 0's work, and is waited for."""
    from flows.submit import Submitter
    from tasks.job import produce

    submitter, rank = Submitter(profile), int(os.environ.get("RANK", 0))
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    with display.live():
        for step in plan.due:
            display.started(step)
            if rank == 0 or step.node.stage.distributed:
                # Another such run may be making the same artifact: wait, and find it made. Ranks must all go on at once.
                lock = Path(profile.scratch) / "locks" / step.artifact.key
                with locked(lock) if alone else nullcontext():
                    produce(submitter.payload(step), lambda event, step=step: display.event(step, event))
                    lock.unlink(missing_ok=True)        # who waits for it finds the artifact
            while (record := store.record(step.artifact)) is None:
                time.sleep(0.2)
            display.finished(step, record, 0.0)


@contextmanager
def _servers(profile: Profile, console: Console, needed: bool) -> Iterator[None]:
    """The servers a run needs: the profile's own, those of ``winnow up``, or embedded ones for as long as the run lasts."""
    from cluster.services import Services

    kinds = [kind for kind, own in (("ray", profile.ray.address), ("prefect", profile.prefect.api_url)) if not own]
    services = Services()
    if needed and kinds:
        with console.status("starting " + " and ".join(kinds)):
            services.start(kinds)
    try:
        os.environ.update(services.environment())
        if profile.prefect.api_url:
            os.environ["PREFECT_API_URL"] = profile.prefect.api_url
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")     # the display tells it better
        yield
    finally:
        if needed and kinds:
            services.release()


def _run_pipeline(recipe: str, profile: str, display: Display, as_flow: bool) -> Summary:
    from prefect.logging.handlers import APILogHandler

    from flows.pipeline import WATCHERS, pipeline, run

    with display.live():
        WATCHERS.set((display,))
        try:
            return (pipeline if as_flow else run)(recipe, profile)
        finally:
            APILogHandler().flush()       # before the server it logs to may go

