"""``winnow notify``: the Prefect server calls a webhook when a run fails, or a claim or a gate of its recipe.

It is the server that calls, by an automation of its own, so that it also does when the process of the run is gone.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from flows.connection import prefect_server
from flows.messenger import CLAIM_FAILED, FLOW, GATE_FAILED
from flows.options import ProfileOption, console

NAME = "winnow-notify"
WHEN = "when a run of winnow fails, or a claim or a gate of its recipe"
EVENTS = ("prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut", CLAIM_FAILED, GATE_FAILED)
TEXT = '(flow_run.name ~ ": " ~ (event.payload.message or flow_run.state.message or flow_run.state.name)) | tojson'
PAYLOAD = '{"text": {{ TEXT }}, "event": {{ event.event | tojson }}, "run": "PAGE/runs/flow-run/{{ flow_run.id }}"}'.replace(
    "TEXT", TEXT
)


def notify(
    webhook: Annotated[str, typer.Option(envvar="WINNOW_WEBHOOK_URL", help="a secret: better given by the environment")] = "",
    off: Annotated[bool, typer.Option("--off", help="call nobody any more")] = False,
    profile: ProfileOption = "local",
) -> None:
    """Have Prefect call a webhook when a run fails, or a claim or gate of its recipe. Takes its URL from WINNOW_WEBHOOK_URL, or
    asks."""
    if not off:
        if not webhook and not sys.stdin.isatty():
            raise ValueError("notify: nobody is there to ask for the webhook; set WINNOW_WEBHOOK_URL")
        webhook = webhook or typer.prompt("URL of the webhook", hide_input=True)
        if not webhook.startswith(("http://", "https://")):
            raise ValueError("WINNOW_WEBHOOK_URL should start with http:// or https://")
    with prefect_server(profile) as client:
        for automation in client.request("POST", "/automations/filter", json={}).json():
            if automation["name"] == NAME:
                client.request("DELETE", f"/automations/{automation['id']}")
        if not off:
            client.request(
                "POST", "/automations/", json=_automation(webhook, str(client.api_url).rstrip("/").removesuffix("/api"))
            )
    console.print("nobody is called any more" if off else f"Prefect calls the webhook {WHEN}")


def _automation(webhook: str, page: str) -> dict[str, Any]:
    """The automation, beside the block that keeps the URL where Prefect keeps secrets."""
    from prefect.blocks.webhook import Webhook

    block = Webhook(url=webhook, headers={"Content-Type": "application/json"})
    return {
        "name": NAME,
        "description": f"calls a webhook {WHEN}",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {**FLOW, "prefect.resource.name": "winnow*"},
            "expect": list(EVENTS),
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "call-webhook",
                "block_document_id": str(block.save(NAME, overwrite=True)),
                "payload": PAYLOAD.replace("PAGE", page),
            },
        ],
    }
