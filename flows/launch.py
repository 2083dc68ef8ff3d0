"""Runs a recipe from a terminal: as the Prefect flow with the servers it needs, or right here without any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.profile import Profile, load_profile
from cluster.reach import check_servers
from cluster.turn import Queue
from flows.chronicle import tracking_uri
from flows.conductor import heal
from flows.display import Display
from flows.here import make_here
from flows.override import parse_settings
from flows.part import WHOLE, Part
from flows.plan import Plan, prepare

Summary = dict[str, Any]


def launch(
    recipe: str, profile: str, console: Console, quiet: bool, here: bool, part: Part = WHOLE, overrides: Sequence[str] = ()
) -> tuple[Plan, Summary | None]:
    """The plan as it was before, and the summary after; no summary on ranks that only help."""
    return heal(lambda: _launch(recipe, profile, console, quiet, here, part, overrides))


def _launch(
    recipe: str, profile: str, console: Console, quiet: bool, here: bool, part: Part, overrides: Sequence[str]
) -> tuple[Plan, Summary | None]:
    where = load_profile(profile)
    plan, store = prepare(recipe, where, part=part, settings=parse_settings(overrides))
    recipe = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    display = Display(console, quiet)
    if here and int(os.environ.get("RANK", 0)):
        make_here(plan, store, where, display)
        return plan, None
    check_servers(where, where.mlflow.tracking_uri or tracking_uri(), jobs=bool(plan.due) and not here)
    needed = bool(plan.due) and not here
    with Queue.of(where).place(plan.recipe.name) if needed else nullcontext(), _servers(where, console, needed):
        return plan, _run_pipeline(recipe, profile, display, here, part, overrides, as_flow=needed)


@contextmanager
def _servers(profile: Profile, console: Console, needed: bool) -> Iterator[None]:
    """The servers a run needs: the profile's own, those of ``winnow up``, or embedded ones for as long as the run lasts."""
    from cluster.servers.services import Services

    kinds = [kind for kind, own in (("ray", profile.ray.address), ("prefect", profile.prefect.api_url)) if not own]
    services = Services()
    if needed and kinds:
        with console.status("starting " + " and ".join(kinds)):
            services.start(kinds)
    try:
        os.environ.update(services.environment())
        if profile.prefect.api_url:
            os.environ["PREFECT_API_URL"] = profile.prefect.api_url
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display tells it better
        yield
    finally:
        if needed and kinds:
            services.release()


def _run_pipeline(
    recipe: str, profile: str, display: Display, here: bool, part: Part, overrides: Sequence[str], as_flow: bool
) -> Summary:
    from prefect.logging.handlers import APILogHandler

    from flows.pipeline import SAY, WATCHERS, pipeline, refresh_global_settings_context, run

    refresh_global_settings_context()  # Prefect read the environment when it was imported, for an earlier run maybe
    with display.live():
        WATCHERS.set((display,))
        SAY.set(display.say)
        try:
            if as_flow:
                return pipeline(recipe, profile, *part, overrides=list(overrides))
            return run(recipe, profile, here, part=part, settings=parse_settings(overrides))
        finally:
            APILogHandler().flush()  # before the server it logs to may go
