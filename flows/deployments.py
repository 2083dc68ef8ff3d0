"""Serves the pipeline as a Prefect deployment: runs are triggered and scheduled from the Prefect UI."""

from __future__ import annotations

from prefect import serve

from flows.pipeline import pipeline

DEPLOYMENT = "pipeline"


def main() -> None:
    """Register the deployment and run what it is asked for, until stopped. ``winnow up`` starts this."""
    deployment = pipeline.to_deployment(
        name=DEPLOYMENT,
        description="Run a Winnow recipe: a path, the name of a shipped recipe, or YAML text. Paths in it are absolute.",
        tags=["winnow"],
    )
    deployment.model_fields_set.discard("schedules")  # made in the UI; sent as the empty list, each start would delete them
    serve(deployment, print_starting_message=False, limit=1)


if __name__ == "__main__":
    main()
