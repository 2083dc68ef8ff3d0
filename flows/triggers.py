"""Triggers: Prefect is told of every artifact that a flow publishes, and an automation on its server runs a deployment then.

    winnow trigger compress --on pretrain       a new pretraining artifact starts the deployment "compress"

The automation is the server's own: it is there after a restart, and can be paused or changed in the UI. The deployment runs
with its own parameters; where its recipe has the same pretraining, that is found done.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import typer

from flows.connection import prefect_server
from flows.messenger import PUBLISHED
from flows.options import ProfileOption, console


def trigger(
    deployment: Annotated[str, typer.Argument(help="name of the deployment to run")],
    on: Annotated[str, typer.Option("--on", metavar="STAGE", help="kind of the stage whose new artifacts start it")],
    recipe: Annotated[str | None, typer.Option(help="only artifacts that runs of the recipe with this name made")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="take the trigger away")] = False,
    profile: ProfileOption = "local",
) -> None:
    """Have a deployment run whenever a stage publishes a new artifact; its own runs do not start it again."""
    from tasks.stage import STAGES

    if on not in STAGES:
        raise ValueError(f"--on {on}: no such kind of stage; choose one of {', '.join(STAGES)}")
    name = f"winnow: {deployment} on {on}" + (f" of {recipe}" if recipe else "")
    with prefect_server(profile) as client:
        there = client.read_automations_by_name(name)
        if remove:
            if not there:
                raise ValueError(f"trigger: there is no {name!r}; see Automations in the UI")
            client.delete_automation(there[0].id)
            console.print(f"removed {name}", highlight=False)
            return
        wanted = _automation(name, _deployment(client, deployment), deployment, on, recipe)
        if there:
            client.update_automation(there[0].id, wanted)
        else:
            client.create_automation(wanted)
    console.print(f"{name}: a new artifact of {on} runs {deployment}", highlight=False)


def _automation(name: str, id: uuid.UUID, deployment: str, stage: str, recipe: str | None) -> Any:
    from prefect.events import AutomationCore, EventTrigger, RunDeployment

    match = {"winnow.stage": stage, "winnow.deployment": f"!{deployment}", **({"winnow.recipe": recipe} if recipe else {})}
    return AutomationCore(
        name=name,
        description=f"Made by winnow trigger: a new artifact of {stage} runs the deployment {deployment}.",
        tags=["winnow"],
        trigger=EventTrigger(expect={PUBLISHED}, match=match, posture="Reactive", threshold=1),
        actions=[RunDeployment(source="selected", deployment_id=id)],
    )


def _deployment(client: Any, name: str) -> uuid.UUID:
    from flows.deployments import ours

    known = {one.name: one.id for one in ours(client)}
    if name not in known:
        raise ValueError(
            f"trigger: no deployment {name!r} of Winnow's on the server; choose one of {', '.join(sorted(known)) or 'none yet'}"
        )
    return known[name]
