"""What MLflow remembers: one parent run per flow run, a child per stage, a logged model per model artifact.

Only the flow process writes here. Stages print their curves with time stamps, so a curve that is replayed (a flow that
attached to a running job, a cached stage) lands on the same points: MLflow keeps one row per (metric, time, step, value).
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from cluster.database import made
from cluster.lock import locked
from cluster.logged import Model, tell
from cluster.origins import Origins
from cluster.overview import to_tell
from cluster.profile import SQLITE, home
from cluster.reach import Plain, artifact_location, check_tracking, plainly

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)
EXPERIMENT = "winnow"
BATCH = 900
FLUSH_SECONDS = 3.0
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own are 7, and 120 s each
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is the command's own
}


def tracking_uri(named: str | None = None) -> str:
    """The MLflow that a profile names; of one that names none, the server that is up, else this home's file."""
    return named or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"


def tracker(uri: str) -> str:
    """Which MLflow it is: that of a home is one, whether its server is up or its file is written to."""
    if uri.startswith("sqlite:") or urlsplit(uri).hostname in ("127.0.0.1", "localhost"):
        return f"{os.uname().nodename}:{home()}"
    return without_login(uri)


def without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.hostname else uri


def connect(uri: str) -> Any:
    """A client of the MLflow at ``uri`` and of its model registry, asked first whether it is there; it fails in one line."""
    os.environ.update(SETTINGS | dict(os.environ))
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)  # both tell of every new database on stderr, and the second
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # all of its trace of what is raised anyway
    check_tracking(uri)
    with plainly(uri):
        return Plain(MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


def next_try(begun: float, least: float) -> float:
    """When to try MLflow again after a try that began then and failed just now: after ``least`` seconds, or ten times what it
    took, as a server that hangs holds up whoever tells it."""
    return (now := time.monotonic()) + max(least, 10 * (now - begun))


def make_database(uri: str) -> None:
    """A new database, made aside and put in its place whole; one whose making was killed is kept as ``mlflow.half``."""
    file = Path(uri.removeprefix(SQLITE))
    if not uri.startswith(SQLITE) or made(file):
        return
    aside = file.parent / "mlflow-new"
    shutil.rmtree(aside, ignore_errors=True)
    connect(f"{SQLITE}{aside / file.name}").search_experiments(max_results=1)
    if file.exists() and file.stat().st_size:
        os.replace(file, half := file.with_suffix(".half"))
        LOG.warning("%s was never made in full; it is kept as %s, and made anew", file, half)
    os.replace(aside / file.name, file)
    shutil.rmtree(aside)


@dataclass
class Tracking:
    """One flow run in MLflow."""

    client: MlflowClient
    experiment: str
    parent: str
    children: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)  # ids of LoggedModels by the keys of their artifacts
    _last: dict[str, int] = field(default_factory=dict)  # step of a run's curves; final numbers end them, not begin them
    _pending: dict[str, list[Any]] = field(default_factory=dict)
    _due: float = 0.0
    _failing: bool = False
    _lock: Any = field(default_factory=threading.RLock, repr=False)  # every job in flight has a follower of its own

    @classmethod
    def start(cls, uri: str, name: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> Tracking:
        """Open the parent run."""
        # Two runs at once must not both set up a new database.
        with locked(home() / "locks" / "mlflow", "another run, which sets up MLflow"):
            make_database(uri)
            client = connect(uri)
            if found := client.get_experiment_by_name(EXPERIMENT):
                experiment = found.experiment_id
            else:
                experiment = client.create_experiment(EXPERIMENT, artifact_location(uri))
            for tag, value in to_tell(found.tags if found else {}, experiment).items():
                client.set_experiment_tag(experiment, tag, value)
        run = client.create_run(experiment, run_name=name, tags=dict(tags))
        tracking = cls(client, experiment, run.info.run_id)
        tracking.params(None, params)
        return tracking

    def close_abandoned(self, is_alive: Any) -> None:
        """End runs still marked running whose process (tag winnow.process) is gone: nobody else will."""
        runs = self.client.search_runs([self.experiment], "attributes.status = 'RUNNING' and tags.`winnow.process` != ''")
        for run in runs:
            if not is_alive(run.data.tags["winnow.process"]):
                of_run = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}'"
                for open_run in [*self.client.search_runs([self.experiment], of_run), run]:
                    self.client.set_terminated(open_run.info.run_id, "KILLED")

    def child(self, id: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Open the run of one stage under the parent."""
        tags = {**tags, "mlflow.parentRunId": self.parent}
        run = self.client.create_run(self.experiment, run_name=id, tags=tags)
        self.children[id] = run.info.run_id
        self.params(id, params)

    @property
    def origins(self) -> Origins:
        return Origins(self.client, self.experiment)

    def link(self, id: str, run: str) -> None:
        """What is told of a stage from now on goes into a run that is there."""
        self.children[id] = run

    def point(self, id: str, metrics: Mapping[str, float], step: int, timestamp: int) -> None:
        """One point of a stage's curves (timestamp in ms); written in batches every few seconds."""
        from mlflow.entities import Metric as Row

        rows = [Row(name, value, timestamp, step) for name, value in metrics.items()]
        with self._lock:
            self._last[self.children[id]] = max(step, self._last.get(self.children[id], 0))
            self._pending.setdefault(self.children[id], []).extend(rows)
            if time.monotonic() > self._due:
                self.flush()

    def flush(self) -> None:
        """Write what is pending. When MLflow does not answer, it stays pending and training goes on."""
        with self._lock:
            begun = time.monotonic()
            self._due = begun + FLUSH_SECONDS
            for run, rows in self._pending.items():
                while rows:
                    try:
                        self.client.log_batch(run, metrics=rows[:BATCH])
                    except Exception as error:  # the client raises transport errors of several libraries
                        if not self._failing:
                            LOG.warning("MLflow did not take %d points, they are kept: %s", len(rows), error)
                        self._failing, self._due = True, next_try(begun, FLUSH_SECONDS)
                        return
                    del rows[:BATCH]
            self._failing = False

    def scalars(self, id: str | None, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Final numbers of a stage, or of the parent where id is None."""
        from mlflow.entities import Metric as Row

        now, last = int(time.time() * 1000), self._last.get(self.run(id), 0)
        rows = [Row(prefix + name, float(value), now, last) for name, value in metrics.items()]
        for start in range(0, len(rows), BATCH):
            self.client.log_batch(self.run(id), metrics=rows[start : start + BATCH])

    def model(self, id: str, model: Model) -> None:
        """The LoggedModel of a model artifact, one whoever tells of it, with its evaluation."""
        from mlflow.entities import Metric as Row

        last = self._last.get(self.run(id), 0)
        self.models[model.key], known = tell(self.origins, self.run(id), last, model, self.models)
        now, told = int(time.time() * 1000), {name: value for name, value in model.metrics.items() if name not in known}
        rows = [Row(metric, float(value), now, last, model_id=self.models[model.key]) for metric, value in told.items()]
        if rows:
            self.client.log_batch(self.run(id), metrics=rows)

    def dataset(self, id: str | None, name: str, digest: str, source: str) -> None:
        """Which data a run saw; ``digest`` is cut to the 36 characters MLflow keeps."""
        from mlflow.entities import Dataset, DatasetInput

        self.client.log_inputs(self.run(id), [DatasetInput(Dataset(name, digest[:36], "winnow", source))])

    def figures(self, id: str | None, figures: Iterable[tuple[str, Figure]]) -> None:
        for name, figure in figures:
            self.client.log_figure(self.run(id), figure, f"figures/{name}.png")

    def text(self, id: str | None, text: str, file: str) -> None:
        self.client.log_text(self.run(id), text, file)

    def end(self, id: str | None, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        self.flush()
        if id is None and (lost := sum(map(len, self._pending.values()))):
            LOG.error("MLflow never took %d metric points; they are in the artifacts' history.jsonl", lost)
        self.client.set_terminated(self.run(id), status)

    def page(self, id: str | None) -> str:
        """Where a run stands in MLflow's UI, from its root."""
        return f"#/experiments/{self.experiment}/runs/{self.run(id)}"

    def run(self, id: str | None) -> str:
        return self.parent if id is None else self.children[id]

    def tag(self, id: str | None, name: str, value: str) -> None:
        self.client.set_tag(self.run(id), name, value)

    def params(self, id: str | None, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(name, str(value)[:6000]) for name, value in flatten(params).items()]
        for start in range(0, len(rows), 100):
            self.client.log_batch(self.run(id), params=rows[start : start + 100])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            flat[prefix + name] = value
    return flat


if __name__ == "__main__":  # of a home, and then be the server of it
    with locked(Path(sys.argv[1]) / "locks" / "mlflow", "a run, which sets up MLflow"):
        make_database(f"{SQLITE}{sys.argv[1]}/mlflow.db")
    os.execv(sys.argv[2], sys.argv[2:])
