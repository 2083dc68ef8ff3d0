"""Runs a recipe from a terminal: as the Prefect flow with the servers it needs, or right here without any."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console

from cluster.profile import Profile, load_profile
from cluster.reach import check_servers
from cluster.tracking import tracking_uri
from cluster.turn import Queue
from flows.conductor import heal
from flows.display import Display
from flows.ending import OUTCOME, Outcome, Terminated, check_ranks, end_with_torchrun, ends_once, ranks
from flows.here import make_here
from flows.lazy import collect_as_ever
from flows.override import parse_settings
from flows.part import WHOLE, Part
from flows.plan import Plan, doubts, prepare
from flows.search import left
from flows.spared import Spared

Summary = dict[str, Any]
QUIET = {  # the display tells it better, and of a Prefect that died the watch
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_CLIENT_MAX_RETRIES": "4",  # half a minute for each question: longer than a restart
}


def launch(
    recipe: str,
    profile: str,
    console: Console,
    quiet: bool,
    here: bool,
    part: Part = WHOLE,
    overrides: Sequence[str] = (),
    strict: bool = False,
) -> tuple[Plan, Summary | None]:
    """The plan as it was before, and the summary after; no summary on ranks that only help. ``strict`` refuses a recipe that
    requires nothing."""
    check_ranks()
    end_with_torchrun()
    if ranks() > 1:  # torchrun ends its ranks itself
        return heal(lambda: _launch(recipe, profile, console, quiet, here, part, overrides, strict))
    with ends_once(calmly=not here):
        return heal(lambda: _launch(recipe, profile, console, quiet, here, part, overrides, strict))


def _launch(
    recipe: str, profile: str, console: Console, quiet: bool, here: bool, part: Part, overrides: Sequence[str], strict: bool
) -> tuple[Plan, Summary | None]:
    where = load_profile(profile).under(ranks()) if here else load_profile(profile)
    helps = int(os.environ.get("RANK", 0)) > 0
    if ranks() > 1 and not here:
        raise ValueError(f"torchrun started {ranks()} ranks, which train where they are: add --here, or leave torchrun out")
    settings = parse_settings(overrides)
    plan, store = prepare(recipe, where, part=part, settings=settings)
    if strict and not plan.recipe.require:
        what = "all models of the recipe are there" if part != WHOLE else 'the recipe says require: ["perplexity <= 30"]'
        raise ValueError(f"--strict: nothing is required of what this run makes; gates are judged where {what}")
    recipe = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    for doubt in () if helps else doubts(plan):
        console.print(f"note: {doubt}", soft_wrap=True, highlight=False, markup=False)
    display = Display(console, quiet or helps)
    collect_as_ever()
    if plan.recipe.decides and ranks() > 1:
        raise ValueError(
            "recipe.search: ranks of torchrun cannot decide together; run it without torchrun, or leave out stop and tpe"
        )
    due = not here and left(plan, lambda trials: prepare(recipe, where, part=part, settings=settings, trials=trials)[0])
    if here and helps:
        make_here(Spared(plan, display), store, where)
        return plan, None
    _check_home()
    check_servers(where, tracking_uri(where.mlflow.tracking_uri), jobs=due)
    with Queue.of(where).place(plan.recipe.name) if due else nullcontext(), _servers(where, console, needed=due):
        return plan, _run_pipeline(recipe, profile, display, here, part, overrides, as_flow=due)


def _check_home() -> None:
    """Raise ConnectionError where all that ``winnow up`` started has died, as after a reboot: nobody starts it again."""
    from cluster.servers.services import Services

    services = Services()
    if services.mode == "up" and not any(server.process.alive for server in services.state.servers.values()):
        raise ConnectionError("the servers of this home have died; winnow up starts them again, winnow down goes on without")


@contextmanager
def _servers(profile: Profile, console: Console, needed: bool) -> Iterator[None]:
    """The servers a run needs: the profile's own, those of ``winnow up``, or embedded ones for as long as the run lasts."""
    from cluster.servers.services import Services
    from cluster.servers.supervisor import Watch

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    imported = Thread(target=import_module, args=("flows.pipeline",), daemon=True)
    if needed:  # Prefect takes seconds to import, and servers to start
        imported.start()
    kinds = [kind for kind, own in (("ray", profile.ray.address), ("prefect", profile.prefect.api_url)) if not own]
    services = Services()
    if needed and kinds:
        with console.status("starting " + " and ".join(kinds)):
            services.start([*kinds, "warm"] if "ray" in kinds else kinds)  # jobs of a Ray here begin as its copies
    watched = Watch(services, partial(console.print, highlight=False, markup=False, soft_wrap=True))
    try:
        os.environ.update(services.environment())
        if profile.prefect.api_url:
            os.environ["PREFECT_API_URL"] = profile.prefect.api_url
        logging.raiseExceptions = False  # or Prefect writes to stderr what it could not log
        if needed:  # two threads that import parts of Prefect wait for each other, and one gives up
            imported.join()
        with watched if needed and kinds else nullcontext():
            yield
    finally:
        if needed and kinds:
            services.release()


def _run_pipeline(
    recipe: str, profile: str, display: Display, here: bool, part: Part, overrides: Sequence[str], as_flow: bool
) -> Summary:
    from flows.make import WATCHERS
    from flows.running import SAY, run

    WATCHERS.set((display,))
    SAY.set(display.say)
    if not as_flow:
        with display.live():
            return run(recipe, profile, here, part=part, settings=parse_settings(overrides))
    from prefect.logging.handlers import APILogHandler

    from flows.pipeline import pipeline, refresh_global_settings_context

    refresh_global_settings_context()  # Prefect read the environment when it was imported, for an earlier run maybe
    with display.live():
        OUTCOME.set(outcome := Outcome())
        try:
            return _flow(lambda: pipeline(recipe, profile, *part, overrides=list(overrides)), outcome, display)
        finally:
            if not outcome.untold:
                APILogHandler().flush()  # before the server it logs to may go


def _flow(call: Callable[[], Any], outcome: Outcome, display: Display) -> Summary:
    """The flow's summary, or what ended it; whatever Prefect has to add, or cannot be told any more."""
    try:
        return call()
    except BaseException as error:
        if outcome.interruption is not None:
            told = isinstance(outcome.interruption, (KeyboardInterrupt, Terminated))
            raise (outcome.interruption if told else Terminated()) from None
        if outcome.summary is None:
            raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        display.console.print(
            f"everything is made, but Prefect could not be told so ({what}); its page may show the run as open"
        )
        return outcome.summary
