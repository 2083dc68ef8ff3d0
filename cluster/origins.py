"""Finds what MLflow has of an artifact already: the run that made it and its logged model, so that neither is written twice.

A run counts when it told its stage to the end (it has the metric ``seconds``) and when what was measured of the model in it
was measured the same way: one run can hold one perplexity only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

EVALUATE = "winnow.evaluate."  # and the evaluator: the address of what was measured
KEY, CACHED = "winnow.key", "winnow.cached"


class Origins:
    """One experiment, seen through a client of MLflow's."""

    def __init__(self, client: Any, experiment: str) -> None:
        self.client, self.experiment = client, experiment

    def run(self, key: str, evaluations: Mapping[str, str]) -> Any | None:
        """The oldest run that tells of the artifact ``key`` and has no other ``evaluations`` (address by tag) than these."""
        which = f"tags.`{KEY}` = '{key}' and metrics.seconds >= 0"
        found: Iterable[Any] = self.client.search_runs([self.experiment], which, order_by=["attributes.start_time ASC"])
        return next((run for run in found if fits(run.data.tags, evaluations)), None)

    def model(self, key: str) -> Any | None:
        """The logged model of the artifact."""
        return next(iter(self.client.search_logged_models([self.experiment], f"tags.`{KEY}` = '{key}'", max_results=1)), None)


def fits(tags: Mapping[str, str], evaluations: Mapping[str, str]) -> bool:
    """Whether a run with these tags may take these evaluations: it has them, or none by their names."""
    return all(tags.get(name, address) == address for name, address in evaluations.items())
