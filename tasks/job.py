"""The entry point of one unit of work: make one artifact, or be the Ray job that makes a few.

``produce`` is the whole life of an artifact: fetch the inputs, run the stage, check the masks, publish. It runs the same
in this process, in a Ray task, on every rank of a Ray Train group, or under ``torchrun``. What it has to tell it prints
as event lines; whoever watches the output reads them back.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cluster.profile import home
from cluster.ray.arrival import check_versions
from cluster.ray.events import Event, Failed, Published, print_event, print_note
from cluster.store.artifacts import Artifact, CorruptArtifact
from cluster.store.leftovers import tidy
from cluster.store.owners import owned
from cluster.store.url import open_store
from tasks.context import Context
from tasks.data.digests import DIGESTS, Digests
from tasks.history import HISTORY, History
from tasks.machine import FRUGAL, execution_of, make_engine, own_linear, start_workers
from tasks.models.memory import Peak
from tasks.provenance import environment
from tasks.refusal import disk_full, refused, vanished
from tasks.stage import REPORT, ModelStage, Stage, stage_class
from tasks.train.attempts import next_attempt
from tasks.train.watch import PULSES, last_words

JOB_VARIABLE = "WINNOW_JOB"
Payload = dict[str, Any]


def payload(stage: Stage, artifact: Artifact, parents: dict[str, str], execution: dict, store: str, scratch: str) -> Payload:
    """Everything ``produce`` needs, as JSON."""
    fields = stage.model_dump(mode="json", exclude_none=True)
    identity = {"stage": artifact.stage, "version": artifact.version, "label": artifact.label}
    identity |= {"params": artifact.params, "parents": artifact.parents}
    return {
        "fields": fields,
        "artifact": identity,
        "parents": parents,
        "execution": execution,
        "store": store,
        "scratch": scratch,
    }


def produce(work: Payload, tell: Callable[[Event], None] = print_event) -> None:
    """Make and publish the artifact of a payload, unless it exists. On several ranks, rank 0 publishes."""
    try:
        check_versions()
        with owned(Path(work["scratch"]) / Artifact(**work["artifact"]).address):
            _produce(work, tell)
    except (ValueError, FloatingPointError) as error:
        if refused(error):  # the input is at fault: trying again cannot help
            aside = error.aside if isinstance(error, CorruptArtifact) else ""
            tell(Failed(f"{type(error).__name__}: {error}", final=True, aside=aside))
        raise
    except PermissionError as error:  # so are the credentials
        tell(Failed(f"{type(error).__name__}: {error}", final=True, shared=True))
        raise
    except Exception as error:
        full, failure = disk_full(error), error
        if full is not None:
            places = f"the disk of {work['scratch']} or of {work['store']}"
            failure = OSError(f"no space left on {places}{full}; free some and run the same command to go on")
        elif lost := vanished(error, work["store"]):
            what = f"{lost} is gone: it was removed, or the disk of the store went away, while it was read"
            failure = FileNotFoundError(f"{what}; run the same command to go on")
        if isinstance(failure, OSError):
            tell(Failed(f"{type(failure).__name__}: {failure}", final=False, shared=True))
        if failure is not error:
            raise failure from error
        raise


def share(work: Payload, tell: Callable[[Event], None] = print_event) -> None:
    """On every rank of torchrun, of a stage that runs on one: rank 0 produces, and the others are the workers it starts."""
    from cluster.deepspeed.others import helped, serve

    execution = execution_of(work["execution"])
    if execution.rank:
        return serve(execution.device)
    with helped(execution.device):
        produce(work, tell)


def produce_all(payload: dict[str, list[Payload]]) -> None:
    """Produce one after the other; one that fails keeps none of the others from being made."""
    failures = []
    for work in payload["work"]:
        try:
            produce(work)
        except Exception as error:
            failures.append(error)
    if failures:
        for other in failures[1:]:
            failures[0].add_note(f"and {type(other).__name__}: {other}")
        raise failures[0]


def _produce(work: Payload, tell: Callable[[Event], None]) -> None:
    artifact = Artifact(**work["artifact"])
    store = open_store(work["store"], Path(work["scratch"]) / "cache")
    tidy(store, Path(work["scratch"]))
    if store.done(artifact):
        return
    execution = execution_of(work["execution"])
    stage = stage_class(artifact.stage).model_validate(work["fields"])
    scratch = Path(work["scratch"]) / artifact.address
    output = scratch / "output"
    if execution.rank == 0:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    history = History(scratch / HISTORY, artifact.address, tell)
    report = (lambda event: None) if execution.rank else history.report
    inputs = {role: store.take(address) for role, address in work["parents"].items()}
    engine, workers = partial(make_engine, execution), partial(start_workers, work.get("resources", {}))
    context = Context(inputs, output, scratch, execution, report, engine, workers)
    planned, digests = artifact.params.get("fingerprints", {}), Digests(home() / DIGESTS)
    stage.verify(planned, digests)
    stage.check_parties(stage.parties(context))
    started = time.monotonic()
    with Peak(execution.device) as peak, own_linear():
        metrics = stage.run(context)
    seconds = time.monotonic() - started
    if execution.rank:
        return
    stage.verify(planned, digests)  # what changed while it was read must not be published under the old key
    (output / REPORT).mkdir(exist_ok=True)
    if stage.yields == "model":
        metrics |= {"peak_memory_bytes": float(peak.bytes), **_check_model(stage, inputs, output)}
    history.write(output / REPORT / HISTORY)
    record = store.publish(
        artifact, output, metrics, seconds, work["parents"], environment(work["execution"], work.get("provenance", {}))
    )
    history.report(Published(record.metrics, record.seconds))
    shutil.rmtree(scratch, ignore_errors=True)


def _check_model(stage: Stage, inputs: dict[str, Path], output: Path) -> dict[str, float]:
    """The seam between stages: the artifact loads strictly and its masks keep every promise, counted on the stored weights,
    or the stage fails."""
    from tasks.formats.mask import load_masks
    from tasks.models.files.layout import MASKS
    from tasks.models.files.promises import check_model, require_subset

    checked = check_model(output)
    if "model" in inputs and isinstance(stage, ModelStage) and stage.keeps_masks:
        require_subset(checked.masks, load_masks(inputs["model"] / MASKS))
    if checked.masks:
        sparsities = {name: 1 - mask.live / mask.numel for name, mask in checked.masks.items()}
        (output / REPORT / "sparsity.json").write_text(json.dumps(sparsities))
    return {"sparsity": checked.sparsity}


def main() -> int:
    """The Ray job: the stage, where one is in it, then the evaluations."""
    work = json.loads(os.environ[JOB_VARIABLE])
    evaluations = [unit for unit in work if unit["artifact"]["stage"] == "evaluate"]
    try:
        for unit in work:
            if unit not in evaluations:
                _launch(unit)
        _evaluate(evaluations)
    except Exception as error:
        print_event(Failed(f"{type(error).__name__}: {error}", final=False))
        return 1
    return 0


def _evaluate(work: list[Payload]) -> None:
    """Those that read what others of them measure come after them; one that fails keeps none of the others from being made."""
    made = {Artifact(**unit["artifact"]).key for unit in work}
    later = [unit for unit in work if made & set(unit["artifact"]["parents"].values())]
    failures = []
    for wave in ([unit for unit in work if unit not in later], later):
        try:
            _share_out(wave)
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _share_out(work: list[Payload]) -> None:
    """One after the other in as many workers as the profile says: what a worker imports costs more than most evaluations."""
    if not work:
        return
    from concurrent.futures import ThreadPoolExecutor

    from cluster.ray.workers import run_task

    resources = work[0]["resources"]
    parts = [work[first :: resources["workers"]] for first in range(min(resources["workers"], len(work)))]
    room = {name: resources[name] for name in ("cpus", "gpus", "memory")}
    give = partial(run_task, "tasks.job:produce_all", **room, warm=True)
    with ThreadPoolExecutor(len(parts)) as pool:
        for finished in [pool.submit(give, {"work": part}) for part in parts]:
            finished.result()


def _launch(work: Payload) -> None:
    """Run one payload on the cluster: as a Ray task, or as a Ray Train group where the stage wants ranks."""
    from cluster.ray.workers import run_group, run_task

    resources, stage = work["resources"], stage_class(work["artifact"]["stage"])
    if not stage.distributed:
        env = FRUGAL if stage.frugal else {}
        room = {name: resources[name] for name in ("cpus", "gpus", "memory")}
        run_task("tasks.job:produce", work, **room, env=env, warm=resources["workers"] == 1)  # others ask Ray for workers
        return
    address = Artifact(**work["artifact"]).address
    work = {**work, "execution": {**work["execution"], "attempt": next_attempt(Path(work["scratch"]) / address)}}
    run_group(
        "tasks.job:produce",
        work,
        resources["ranks"],
        resources["cpus"],
        resources["gpus"],
        work["max_failures"],
        storage=Path(work["scratch"]) / "ray-train",
        tell=partial(print_note, address),
        seen=partial(last_words, Path(work["scratch"]) / address / PULSES, address),
    )


if __name__ == "__main__":
    sys.exit(main())
