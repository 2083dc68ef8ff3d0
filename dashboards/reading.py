"""Reads MLflow in pages and keeps what it read: any MLflow server or database, and nothing of it is ever written.

A search gives hundreds of runs at a time with all their parameters, tags and last numbers. At first all are read, the newest
first, and can be looked at from the first page on; then only what is new, what ended and what runs. What was deleted in
MLflow, or got a tag by hand, is seen when all is read again, every ten minutes and when somebody asks for it.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.tracking import EXPERIMENT, connect
from dashboards.book import FINISHED, RUNNING, Book, Pipeline, Stage
from dashboards.layers import LAYERS
from dashboards.registered import Registered

if TYPE_CHECKING:
    from mlflow.entities import Run

FIRST_PAGE, PAGE = 100, 300  # runs; MLflow holds a page's rows as objects, and memory once taken is seldom given back
EVERY = 3.0  # seconds between two looks at what changed, while somebody looks at the page
IDLE = 30.0  # seconds without a question after which nobody does
ALL_AGAIN = 600.0
OVERLAP = 120_000  # milliseconds by which clocks of those who write runs may differ
PARENT, RECIPE, ADDRESS = "mlflow.parentRunId", "winnow.recipe", "winnow.address"
OURS = "winnow."  # begins no field of a recipe: moves of an alias are kept among a run's parameters
FED, REUSED = "winnow.parent.", "winnow.cached."
CLAIMS, CURVES = "claims.json", ("loss", "tokens", "sparsity")


class Reading:
    """What one MLflow knows, as far as it was read. ``version`` grows whenever ``book`` is another one."""

    def __init__(self, uri: str, client: Any = None) -> None:
        self.uri, self.book, self.version, self.trouble, self.complete = uri, Book(), 0, "", False
        self.experiment, self.anew = "", False  # whether all is to be read once more
        self._client = client
        self._runs: dict[str, Pipeline | Stage] = {}
        self._newest, self._all_at = 0, 0.0
        self._registered, self._aliases = Registered(), dict[str, tuple[str, ...]]()
        self.prepare: Callable[[], object] = lambda: None  # draws what is asked for first, before it is
        self._looked, self._wake, self._lock = time.monotonic(), threading.Event(), threading.Lock()

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def start(self) -> None:
        """Go on reading in a thread for as long as the process lives. What it would import is imported first: plotly looks into
        pandas wherever that is loaded, be it by half."""
        for needed in ("pandas", "mlflow"):
            importlib.import_module(needed)
        threading.Thread(target=self._go_on, name="reading", daemon=True).start()

    def looked(self) -> int:
        """Somebody looks; the version that there is."""
        self._looked = time.monotonic()
        if not self._wake.is_set():
            self._wake.set()
        return self.version

    def again(self) -> None:
        """Read all once more, soon."""
        self._all_at, self.version, self.anew = 0.0, self.version + 1, self.complete
        self._wake.set()

    def _go_on(self) -> None:
        while True:
            self.step()
            if self.complete and time.monotonic() - self._looked > IDLE:
                self._wake.clear()
                self._wake.wait()
            time.sleep(EVERY)

    def step(self) -> None:
        """Read what changed; what hinders it stands on the page, and is tried again."""
        try:
            self.refresh()
            trouble = ""
        except (OSError, ValueError) as error:  # an MLflow that is away, or is none
            trouble = " ".join(str(error).split())
        except Exception as error:  # a database's own errors
            trouble = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if trouble != self.trouble:
            self.trouble, self.version = trouble, self.version + 1

    def find(self) -> str:
        """The id of our experiment, once there is one; empty until then."""
        found = None if self.experiment else self.client.get_experiment_by_name(EXPERIMENT)
        self.experiment = self.experiment or (found.experiment_id if found else "")
        return self.experiment

    def refresh(self, everything: bool = False) -> None:
        """Read what changed, or all at first and now and then."""
        with self._lock:
            if not self.find():
                self.complete = True
            elif everything or not self._all_at or time.monotonic() - self._all_at > ALL_AGAIN:
                self._read_all()
            else:
                self._read_changed()
            if self.experiment and (aliases := self._registered.aliases(self.client)) != self._aliases:
                self._aliases = aliases
                self._show(self._runs)

    def _read_all(self) -> None:
        found: dict[str, Pipeline | Stage] = {}
        first, self._registered = not self.complete, Registered()
        for runs in self._pages("", FIRST_PAGE if first else PAGE):
            self._take(runs, found)
            if first:
                self._show(dict(found))
        self._all_at = time.monotonic()
        anew, self.anew = self.anew, False
        if found != self._runs or first or anew:
            self._show(found)
        self.complete = True
        self.prepare()

    def _read_changed(self) -> None:
        found = dict(self._runs)
        since = self._newest - OVERLAP
        for which in (f"attributes.status = '{RUNNING}'", f"attributes.start_time > {since}", f"attributes.end_time > {since}"):
            for runs in self._pages(which, PAGE):
                self._take(runs, found)
        if found != self._runs:
            self._show(found)

    def _pages(self, which: str, size: int) -> Iterator[list[Run]]:
        from mlflow.entities import ViewType

        token = None
        while True:
            runs = self.client.search_runs(
                [self.experiment], which, ViewType.ACTIVE_ONLY, size, ["attributes.start_time DESC"], token
            )
            yield list(runs)
            if not (token := runs.token):
                return
            size = PAGE

    def _take(self, runs: Iterable[Run], found: dict[str, Pipeline | Stage]) -> None:
        for run in runs:
            self._newest = max(self._newest, run.info.start_time or 0, run.info.end_time or 0)
            if told := read(run):
                found[run.info.run_id] = told

    def _show(self, found: dict[str, Pipeline | Stage]) -> None:
        """Of another book. What recipes say of models stays as it was, once all of them are known."""
        lasting = ("fields", "text", "full", "differences") if self.complete else ()
        kept = {key: value for key, value in list(self.book.kept.items()) if key[0] in lasting}
        self._runs = found
        self.book = replace(book_of(found.values(), kept), aliases=self._aliases)
        self.version += 1

    def only(self, parent: str) -> Book:
        """The book of one pipeline: three questions, however many runs there are."""
        found: dict[str, Pipeline | Stage] = {}
        self.experiment = self.client.get_run(parent).info.experiment_id
        self._take([self.client.get_run(parent)], found)
        for runs in self._pages(f"tags.`{PARENT}` = '{parent}'", PAGE):
            self._take(runs, found)
        pipeline = found[parent]
        reused = sorted(set(pipeline.reused.values())) if isinstance(pipeline, Pipeline) else []
        for begin in range(0, len(reused), 100):
            wanted = ", ".join(f"'{run}'" for run in reused[begin : begin + 100])
            for runs in self._pages(f"attributes.run_id IN ({wanted})", PAGE):
                self._take(runs, found)
        return book_of(found.values())

    def curves(self, stage: Stage) -> Mapping[str, list[tuple[int, float]]]:
        """The curves of a training stage by step; kept once it has ended."""
        if "training_tokens" not in stage.numbers and "loss" not in stage.numbers:
            return {}
        return self._curves(stage.run, stage.numbers.get("tokens") if stage.status == RUNNING else None)

    @lru_cache(maxsize=200)  # noqa: B019  one reading lives as long as its process
    def _curves(self, run: str, moved: float | None) -> Mapping[str, list[tuple[int, float]]]:
        found = {name: self.client.get_metric_history(run, name) for name in CURVES}
        by_step = {name: {point.step: _unbounded(point.value) for point in told} for name, told in found.items()}
        return {name: sorted(told.items()) for name, told in by_step.items() if told}

    @lru_cache(maxsize=200)  # noqa: B019
    def text(self, run: str, file: str) -> str:
        """A file of a run that has ended; empty where there is none, or where it cannot be read from here."""
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        listed = {one.path for one in self.client.list_artifacts(run)}
        if file not in listed:
            return ""
        with tempfile.TemporaryDirectory() as directory:
            return Path(self.client.download_artifacts(run, file, directory)).read_text(encoding="utf-8")

    def layers(self, stage: Stage) -> Mapping[str, Mapping[str, float]]:
        """What is known of a model matrix by matrix: its sparsity, and the error that pruning or quantizing left."""
        return json.loads((stage.status == FINISHED and self.text(stage.run, LAYERS)) or "{}")

    def claims(self, pipeline: Pipeline) -> list[dict[str, Any]]:
        return json.loads(self.text(pipeline.run, CLAIMS) or "[]")


def read(run: Run) -> Pipeline | Stage | None:
    """A run as ours; None where it is none."""
    tags, info = run.data.tags, run.info
    told = (info.status, info.start_time or 0, info.end_time or 0)
    if RECIPE in tags and PARENT not in tags:
        reused = {name.removeprefix(REUSED): value for name, value in tags.items() if name.startswith(REUSED)}
        kept = {sys.intern(name): value for name, value in tags.items() if not name.startswith((REUSED, "winnow.artifacts"))}
        seconds = run.data.metrics.get("seconds")
        return Pipeline(info.run_id, sys.intern(tags[RECIPE]), info.run_name or "", *told, kept, reused, seconds)
    if ADDRESS not in tags or PARENT not in tags:
        return None
    return Stage(
        run=info.run_id,
        id=sys.intern(info.run_name or ""),
        maker=tags[PARENT],
        status=told[0],
        started=told[1],
        ended=told[2],
        address=tags[ADDRESS],
        parents={name.removeprefix(FED): value for name, value in tags.items() if name.startswith(FED)},
        params={sys.intern(name): sys.intern(text) for name, text in run.data.params.items() if not name.startswith(OURS)},
        numbers={sys.intern(name): _unbounded(value) for name, value in run.data.metrics.items()},
        gates=tags.get("winnow.gates", ""),
        note=tags.get("mlflow.note.content", "") if told[0] != FINISHED else "",
    )


def _unbounded(value: float) -> float:
    """MLflow's databases keep the largest number there is in place of infinity."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def book_of(found: Iterable[Pipeline | Stage], kept: Mapping[Any, Any] | None = None) -> Book:
    every = sorted(found, key=lambda one: -one.started)
    pipelines = {one.run: one for one in every if isinstance(one, Pipeline)}
    return Book(pipelines, {one.run: one for one in every if isinstance(one, Stage)}, kept=dict(kept or {}))
