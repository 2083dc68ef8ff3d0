"""``winnow deploy``: puts recipes on a Prefect server, to be run by a button or by a schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.connection import prefect_server
from flows.options import OnlyOption, ProfileOption, SetOption, UntilOption, console


def deploy(
    context: typer.Context,
    recipes: Annotated[
        list[str] | None, typer.Argument(help="paths of recipes, or names of shipped ones; none deploys the file")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="CRON", help="run them by themselves, such as '0 3 * * *'; 'none' ends that")
    ] = None,
    timezone: Annotated[str, typer.Option(help="time zone of the schedule")] = "UTC",
    name: Annotated[str | None, typer.Option(help="name of the deployment; the recipe's unless given")] = None,
    profile: ProfileOption = "local",
    settings: SetOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    pool: Annotated[str | None, typer.Option(help="work pool whose workers run them")] = None,
    file: Annotated[
        Path | None, typer.Option(help="deploy what this file lists, and remove what an earlier one listed")
    ] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="remove a deployment; may be repeated")] = None,
) -> None:
    """Make a Prefect deployment of each recipe, with a form of its fields; without recipes, of all that the file lists.
    Deployed again, it keeps the schedule, profile, part and settings that are not given anew."""
    from flows.registration import SET, Entry, everything, home_file, listed, registrations
    from tasks.methods import validate

    if recipes and (file or remove):
        raise ValueError(f"deploy: give recipes or {'--file' if file else '--remove'}, not both")
    said = {"set" if name == "settings" else name for name in context.params if _typed(context, name)}
    if not recipes and (loose := sorted(said & Entry.model_fields.keys() - {"profile"})):
        raise ValueError(f"deploy: --{loose[0]} is of a recipe; name the recipe, or write it in the file")
    if name and len(recipes or []) != 1:
        raise ValueError("deploy: --name is for one recipe")
    own = {"schedule": None if schedule == "none" else schedule, "timezone": timezone, "name": name, "profile": profile}
    own |= {"set": tuple(settings or ()), "only": only, "until": until}
    source = file or home_file()
    listing = listed(source)
    entries = [validate(Entry, {"recipe": recipe, **own}, "deploy") for recipe in recipes or []]
    whole = not recipes and not remove
    wanted = everything(source) if whole else registrations(entries)
    with prefect_server(profile) as client:
        from flows import deployments

        for gone in remove or []:
            deployments.remove(client, gone)
            console.print(f"removed {gone}", highlight=False)
        if not (wanted or whole):
            return
        if not whole:
            wanted = registrations([deployments.kept(client, entry, said) for entry in entries])
        gone = deployments.apply(client, wanted, pool or listing.pool, listing.pull, prune=whole)
    for one in wanted:
        when = f", runs at {one.schedule} {one.timezone}" if one.schedule else ""
        changes = "".join(f", {tag.removeprefix(SET)}" for tag in one.tags if tag.startswith(SET))
        console.print(f"deployed {one.name}{when}{changes}", highlight=False)
    for name in gone:
        console.print(f"removed {name}", highlight=False)


def _typed(context: typer.Context, name: str) -> bool:
    """Whether an option was given, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
