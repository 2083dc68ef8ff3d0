"""Earlier runs, read back from MLflow: the artifacts they stand on, and the recipe that one was made from.

A run says which artifacts it stands on by their keys, in tags that it is created with: from its first moment on MLflow
knows what must not go. Runs deleted in MLflow need nothing any more, and still say what was theirs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.reach import if_there
from cluster.tracking import EXPERIMENT, connect

if TYPE_CHECKING:
    from mlflow.entities import Run

NEEDS = "winnow.artifacts"  # then .1, .2 ...: MLflow has room for 8000 characters in one
DIGITS = 12  # of a key, as an address has them
CHUNK = 600
ADDRESS = re.compile(rf"[a-z0-9_]+/[a-z0-9_]+-([0-9a-f]{{{DIGITS}}})")
RECIPE = "recipe.yaml"


class Standing(NamedTuple):
    """Keys, as addresses have them: of the runs that MLflow lists and of registered models, and of each run deleted there."""

    needed: frozenset[str]
    deleted: tuple[frozenset[str], ...]


def needing(keys: Iterable[str]) -> dict[str, str]:
    """The tags of a run that stands on artifacts with these keys."""
    short = sorted({key[:DIGITS] for key in keys})
    chunks = [short[first : first + CHUNK] for first in range(0, len(short), CHUNK)]
    return {f"{NEEDS}.{number}" if number else NEEDS: " ".join(chunk) for number, chunk in enumerate(chunks)}


class Runs:
    """The runs of one MLflow."""

    def __init__(self, uri: str) -> None:
        self.client = connect(uri)
        found = self.client.get_experiment_by_name(EXPERIMENT)
        self.uri, self.experiment = uri, found.experiment_id if found else None

    def standing(self) -> Standing:
        """What MLflow's runs, listed and deleted, stand on."""
        from mlflow.entities import ViewType

        needed = set(self._registered())
        for run in self._search("", ViewType.ACTIVE_ONLY):
            needed |= _keys(run.data.tags)
        deleted = (frozenset(_keys(run.data.tags)) for run in self._search("", ViewType.DELETED_ONLY))
        return Standing(frozenset(needed), tuple(deleted))

    def find(self, name: str) -> Run:
        """The run of a recipe with this id, or the newest with this name."""
        from mlflow.entities import ViewType

        parents = [run for run in self._search("", ViewType.ACTIVE_ONLY) if "mlflow.parentRunId" not in run.data.tags]
        found = [run for run in parents if name in (run.info.run_id, run.info.run_name)]
        if not found:
            names = ", ".join(dict.fromkeys(str(run.info.run_name) for run in parents[:8])) or "none yet"
            raise ValueError(f"no run {name!r} in MLflow at {self.uri}; give the id of one, or its name: {names}")
        return found[0]

    def stood_on(self, run: Run) -> Set[str]:
        """Keys, as addresses have them, of the artifacts that a run stands on."""
        return _keys(run.data.tags)

    def recipe(self, run: Run) -> str:
        """The text of the recipe that a run was made from."""
        with tempfile.TemporaryDirectory() as directory:
            return Path(self.client.download_artifacts(run.info.run_id, RECIPE, directory)).read_text(encoding="utf-8")

    def _registered(self) -> Iterator[str]:
        for version in self.client.search_model_versions():
            yield from _keys(version.tags)
            if version.run_id and (run := if_there(partial(self.client.get_run, version.run_id))):
                yield from _keys(run.data.tags)
            if version.model_id and (model := if_there(partial(self.client.get_logged_model, version.model_id))):
                yield from _keys(model.tags)

    def _search(self, which: str, view: Any) -> Iterator[Run]:
        """The newest first."""
        page = None
        while self.experiment is not None:
            runs = self.client.search_runs([self.experiment], which, view, 1000, ["attributes.start_time DESC"], page)
            yield from runs
            if not (page := runs.token):
                return


def _keys(tags: dict[str, str]) -> Set[str]:
    """What tags name: lists of keys, and addresses."""
    listed = {key for name, value in tags.items() if name.startswith(NEEDS) for key in value.split()}
    return listed | {found.group(1) for value in tags.values() for found in [ADDRESS.fullmatch(value)] if found}
