"""The ``winnow`` command. Heavy imports wait until a command needs them, so that help and bad input answer at once."""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import law, standing
from flows.dashboard import dashboard
from flows.deploy import deploy
from flows.ending import Terminated, ends_clean
from flows.gc import gc, pin, unpin
from flows.lazy import collect_rarely, make_lazy
from flows.listing import deployments
from flows.notify import notify
from flows.options import (
    Commands,
    JsonOption,
    OnlyOption,
    ProfileOption,
    RecipeArgument,
    SetOption,
    StrictOption,
    Unread,
    UntilOption,
    console,
    errors,
    model_of,
    settle_environment,
    settle_locale,
)
from flows.promotion import promote, rollback
from flows.proof import claims
from flows.schema import schema
from flows.shelves import methods
from flows.triggers import trigger
from flows.upkeep import discard, notes, verify

app = Commands(
    name="winnow",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Sparse language models: pretrain, prune, recover, quantize, evaluate - one recipe.",
)


def main() -> None:
    """Entry point: user errors are one line and exit code 2, Ctrl-C is 130, SIGTERM 143, a terminal that closes 129."""
    settle_locale()
    collect_rarely()
    make_lazy("torch")
    try:
        settle_environment()
        with ends_clean():
            code = app(standalone_mode=False)  # what typer.Exit carried, and 130 where typer caught a Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Terminated as end:
        code = end.code
    except SystemExit as end:  # typer takes every broken pipe for one of its own output
        if isinstance(end.__context__, BrokenPipeError) and not (isinstance(end, Unread) or _unread()):
            raise end.__context__ from None
        raise
    except Exception as error:
        _fail(error)
    if code in (130, 143):
        errors.print("stopped. What was finished is kept; run the same command to go on.")
    if "RANK" in os.environ and "cluster.deepspeed.rank" in sys.modules:  # torchrun started this process, and it trained
        sys.modules["cluster.deepspeed.rank"].leave(code or 0)
    sys.exit(code)


def _unread() -> bool:
    """Whether nobody reads what is printed any more: ``winnow methods | head``."""
    ends = select.poll()
    for number in (1, 2):
        ends.register(number, 0)
    return any(event & select.POLLERR for _, event in ends.poll(0))


def _fail(error: Exception) -> None:
    """What the user can mend is one line and exit code 2; a stage that died, or that another run took over, is 1. The rest is
    ours, or a library's: it keeps its trace."""
    from tasks.refusal import refused

    usage = getattr(error, "format_message", None)  # typer's usage errors
    died = type(error).__name__ in ("StageFailed", "ServerFailed", "Fenced")
    if not (usage or died or isinstance(error, OSError) or refused(error)):
        raise error
    text = " ".join((usage() if usage else str(error)).split())
    if getattr(error, "aside", ""):  # StageFailed has it too
        text += "; run the same command to make it again"
    elif died and not getattr(error, "final", False):
        text += "; run the same command to go on"
    if text:  # none where no command was named: the help was shown
        errors.print(f"winnow: {text}", style="red", soft_wrap=True, highlight=False, markup=False)
    sys.exit(1 if died and not getattr(error, "final", False) else 2)


def run(
    recipe: RecipeArgument,
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
    here: Annotated[bool, typer.Option("--here", help="in this process, without Ray and Prefect; also under torchrun")] = False,
    only: OnlyOption = None,
    until: UntilOption = None,
    settings: SetOption = None,
    strict: StrictOption = False,
) -> None:
    """Run a recipe: make what is not there yet, then show what each stage did to quality, size and speed."""
    from flows.gates import failures
    from flows.launch import launch
    from flows.part import Part

    plan, summary = launch(recipe, profile, errors, as_json, here, Part(only, until), settings or [], strict)
    if summary and as_json:
        print(json.dumps(summary))
    elif summary:
        _show(summary, plan)
    if strict and summary and (failing := failures(summary["models"])):
        errors.print(f"winnow: {'; '.join(failing)}", style="red", soft_wrap=True, highlight=False, markup=False)
        raise typer.Exit(1)


def _show(summary: dict[str, Any], plan: Any) -> None:
    from flows.display import claims_table, models_table
    from flows.measured import evaluations_table, without_row
    from flows.ranking import ranking_table

    if not plan.due:
        console.print("everything is done already; nothing ran", highlight=False)
    if summary["models"]:
        console.print(models_table(summary["models"], summary["unigram_perplexity"], console.width))
    elif summary["unigram_perplexity"]:
        console.print(f"no model yet; a unigram model scores perplexity {summary['unigram_perplexity']:.1f}", highlight=False)
    if summary["evaluations"]:
        console.print(evaluations_table(summary["evaluations"]))
    if more := without_row(summary["stages"]):
        console.print(f"measured too, in --json: {', '.join(more)}", style="dim", highlight=False)
    if summary["ranking"]:
        console.print(ranking_table(summary["ranking"]))
    if champion := summary["champion"]:
        console.print(champion["says"], highlight=False, markup=False, soft_wrap=True)
    for id, reason in summary["failed"].items():
        console.print(f"failed, as the same command would try again: {id}: {reason.removeprefix(f'{id}: ')}", highlight=False)
    if summary["claims"]:
        console.print(claims_table(summary["claims"]))
    total = f"{summary['seconds']:.0f} s, of which {summary['overhead_seconds']:.0f} s outside the stages"
    console.print(total, highlight=False)


def show_plan(
    recipe: RecipeArgument,
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
    only: OnlyOption = None,
    until: UntilOption = None,
    settings: SetOption = None,
) -> None:
    """Say what is cached, what will run and why, and what it will cost. Starts nothing."""
    from cluster.profile import load_profile
    from flows.override import parse_settings
    from flows.part import Part
    from flows.plan import describe, prepare
    from flows.planned import notes, plan_table

    where = load_profile(profile)
    plan, store = prepare(recipe, where, part=Part(only, until), settings=parse_settings(settings or []), only_plan=True)
    rows = [describe(plan, step, where) for step in plan.steps]
    later = plan.recipe.search.count - plan.recipe.search.known if plan.recipe.search else 0
    noted = notes(plan, store)
    if as_json:
        print(json.dumps({"recipe": plan.recipe.name, "steps": rows, "trials_chosen_later": later, "doubts": noted}))
        return
    console.print(plan_table(plan, rows))
    for doubt in noted:
        errors.print(f"note: {doubt}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(rows) - len(plan.due)} cached, {len(plan.due)} to run, evaluations included", highlight=False)
    if later:
        console.print(f"{later} more trials are chosen by what these come to", highlight=False)


def fork(
    source: Annotated[str, typer.Argument(metavar="RUN", help="id or name of a run in MLflow; of several, the newest")],
    at: Annotated[str, typer.Option("--at", metavar="STAGE", help="the first stage that may differ; all before is reused")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="what differs")] = None,
    name: Annotated[str | None, typer.Option(help="name of the new recipe; the old one's and -fork unless given")] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="only say what would run")] = False,
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Branch off an earlier run at a stage: the recipe of that run with other fields from there on, run or planned."""
    from flows.fork import forked

    profile = str(Path(profile).resolve()) if Path(profile).is_file() else profile  # what follows is done where that run was
    path = str(forked(source, at, settings or [], name, profile))
    if only_plan:
        show_plan(path, profile, as_json)
    else:
        run(path, profile, as_json)


def export(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="address or key, or a unique prefix; of --rebuild, DIR")],
    directory: Annotated[Path, typer.Argument(help="where the Hugging Face directory goes; must not exist or be empty")],
    profile: ProfileOption = "local",
    compact: Annotated[bool, typer.Option("--compact", help="sparse weights coded: which live, and those that live")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="the plain directory of a compact one, to the bit")] = False,
) -> None:
    """Write a model as a plain Hugging Face directory with a model card, once plain transformers has read it back."""
    from flows.export import export_model, rebuild_model

    if rebuild:
        if compact:
            raise ValueError("--rebuild writes what --compact took apart; give one of them")
        with errors.status(f"rebuilding {artifact}"):
            rebuild_model(Path(artifact), directory)
        console.print(f"{artifact} -> {directory}", highlight=False)
        return
    record, store = model_of(artifact, profile)
    with errors.status(f"fetching {record.address}") as status:
        export_model(store, record, directory, compact, status.update)
    for note in notes(record):
        errors.print(f"{record.address}: note: {note}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"{record.address} -> {directory}", highlight=False)


app.command("plan")(show_plan)  # in the README's order, which --help has then
for command in (run, dashboard, standing.up, deployments, deploy, promote, rollback, export, verify, discard, gc):
    app.command()(command)
for command in (pin, unpin, fork, trigger, claims, methods, schema, notify, standing.status, standing.down, standing.doctor):
    app.command()(command)
app.add_typer(law.app, name="law")

if __name__ == "__main__":
    main()
