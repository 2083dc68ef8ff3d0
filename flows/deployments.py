"""Serves the pipeline as a Prefect deployment: runs are triggered and scheduled from the Prefect UI."""

from __future__ import annotations

from flows.pipeline import pipeline

DEPLOYMENT = "pipeline"


def main() -> None:
    """Register the deployment and run what it is asked for, until stopped. ``winnow up`` starts this."""
    pipeline.serve(
        name=DEPLOYMENT,
        description="Run a Winnow recipe: a path, the name of a shipped recipe, or YAML text.",
        tags=["winnow"],
        print_starting_message=False,
        limit=1,
    )


if __name__ == "__main__":
    main()
