"""What counts as done is the store; a job that ends without its artifact has failed, and trying again starts another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from cluster.ray.events import Event, Failed, Progress, Published, format_event
from cluster.store.artifacts import CorruptArtifact
from cluster.store.local import LocalStore
from flows.conductor import Conductor, StageFailed, heal
from flows.plan import Step
from tests.flows.recipes import BASE, plan, publish


class Yard:
    """Submitter and jobs in one, in memory: a job is a function of its steps and of ``say``."""

    def __init__(self, *jobs: Callable) -> None:
        self.scripts, self.submitted, self.stopped = list(jobs), [], []
        self.jobs = self

    def submit(self, steps: list[Step]) -> str:
        self.submitted.append([step.id for step in steps])
        self.steps = steps
        return f"job-{len(self.submitted)}"

    def follow(self, job: str, on_line: Callable[[str], None]) -> SimpleNamespace:
        message = self.scripts[int(job[4:]) - 1](self.steps, on_line)
        return SimpleNamespace(message=message or "Job finished successfully.", ok=not message)

    def stop(self, job: str) -> None:
        self.stopped.append(job)


class Watched:
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def started(self, step) -> None:
        self.seen.append(("started", step.id))

    def event(self, step, event) -> None:
        self.seen.append((type(event).__name__.lower(), step.id))

    def line(self, step, text): ...

    def finished(self, step, record, overhead) -> None:
        self.seen.append(("finished", step.id))


@pytest.fixture
def stage(tmp_path):
    """Build a conductor over a plan of which the data are there; it and the steps of pretraining."""
    store = LocalStore(tmp_path / "store")
    publish(store, plan(store).by_id["prepare"], tmp_path / "prepare")

    def build(*jobs):
        made = plan(store)
        conductor = Conductor(made, store, Yard(*jobs), Watched(), most=8)
        return conductor, made.by_id["pretrain"], made.by_id["pretrain.size"]

    build.publish = lambda step: publish(store, step, tmp_path / step.id)
    return build


def said(event: Event) -> str:
    return f"(task pid=7) {format_event(event)}"


def published(step: Step) -> str:
    return said(Published({}, 1.0, address=step.artifact.address))


def test_a_published_event_releases_whoever_waits_while_the_job_goes_on(stage):
    over = threading.Event()

    def job(steps, say):
        say("some other line of the log")
        say(said(Progress(1, 2, "tokens", address=steps[0].artifact.address)))
        stage.publish(steps[0])
        say(published(steps[0]))
        assert over.wait(10)
        stage.publish(steps[1])
        say(published(steps[1]))

    conductor, model, evaluation = stage(job)
    assert conductor.make(model).key == model.artifact.key
    assert not over.is_set()
    over.set()
    assert conductor.make(evaluation).key == evaluation.artifact.key
    assert conductor.submitter.submitted == [["pretrain", "pretrain.size"]]
    assert conductor.watcher.seen == [
        ("started", "pretrain"),
        ("progress", "pretrain"),
        ("published", "pretrain"),
        ("finished", "pretrain"),
        ("started", "pretrain.size"),
        ("published", "pretrain.size"),
        ("finished", "pretrain.size"),
    ]


def test_several_waiters_share_one_job(stage):
    ready = threading.Barrier(3)

    def job(steps, say):
        for step in steps:
            stage.publish(step)
            say(published(step))

    def make(step):
        ready.wait(10)
        made.append(conductor.make(step).address)

    conductor, model, evaluation = stage(job)
    made: list[str] = []
    threads = [threading.Thread(target=make, args=(step,)) for step in (model, evaluation, model)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 3 and len(conductor.submitter.submitted) == 1


def test_a_job_that_ends_without_its_artifact_has_failed_with_its_last_words(stage):
    conductor, model, _ = stage(lambda steps, say: "worker was killed (137)")
    with pytest.raises(StageFailed, match="pretrain: worker was killed") as failed:
        conductor.make(model)
    assert not failed.value.final


def test_a_job_that_ends_well_without_its_artifact_is_told_as_that(stage):
    conductor, model, _ = stage(lambda steps, say: None)
    with pytest.raises(StageFailed, match="^pretrain: its job ended without publishing it$"):
        conductor.make(model)


def test_a_text_that_is_not_enough_for_a_later_stage_ends_the_run_as_soon_as_it_is_counted(tmp_path):
    store = LocalStore(tmp_path / "store")
    made = plan(store)

    def count(steps, say):
        publish(store, steps[0], tmp_path / "prepare", train_tokens=10_000, calibration_tokens=32_767, heldout_tokens=10_000)
        say(published(steps[0]))

    conductor = Conductor(made, store, Yard(count), Watched(), most=8)
    with pytest.raises(StageFailed, match="^recipe.prune: .* calibration split holds 32,767 tokens, at least 32,768") as failed:
        conductor.make(made.by_id["prepare"])
    assert failed.value.final and ("finished", "prepare") in conductor.watcher.seen


def test_the_stages_own_words_count_more_than_its_jobs(stage):
    def job(steps, say):
        say(said(Failed("ValueError: corpus is too small\nwith a trace", final=True)))
        say(said(Failed("RayTaskError: something", final=False)))
        return "exit code 1"

    conductor, model, _ = stage(job)
    with pytest.raises(StageFailed, match="^pretrain: ValueError: corpus is too small$") as failed:
        conductor.make(model)
    assert failed.value.final


def test_a_failure_tells_which_damaged_input_was_kept_aside_whichever_rank_says_so(stage):
    def job(steps, say):
        say(said(Failed("ValueError: prepare/x is not published", final=True, aside="")))
        say(said(Failed("CorruptArtifact: prepare/x was damaged", final=True, aside="prepare/x")))

    conductor, model, _ = stage(job)
    with pytest.raises(StageFailed) as failed:
        conductor.make(model)
    assert failed.value.aside == "prepare/x" and failed.value.final


@pytest.mark.parametrize("shared", [True, False])
def test_a_failure_tells_whether_other_stages_would_meet_it_too(stage, shared):
    def job(steps, say):
        say(said(Failed("OSError: no space left", final=False, shared=shared)))
        say(said(Failed("RuntimeError: one rank: OSError: no space left", final=False)))
        return "exit code 1"

    conductor, model, _ = stage(job)
    with pytest.raises(StageFailed, match="^pretrain: RuntimeError: one rank: OSError: no space left$") as failed:
        conductor.make(model)
    assert failed.value.shared is shared


def test_a_damaged_record_counts_as_not_there_and_is_made_again(stage):
    conductor, model, _ = stage(lambda steps, say: stage.publish(steps[0]) and None)
    stage.publish(model)
    path = conductor.store.root / model.artifact.address / "record.json"
    path.write_text("{}")
    assert conductor.make(model).key == model.artifact.key and conductor.submitter.submitted


def failing(*failures: Exception) -> Callable[[], int]:
    """An attempt that fails in these ways, one after the other, and then comes to 7."""
    left = list(failures)

    def attempt() -> int:
        if left:
            raise left.pop(0)
        return 7

    return attempt


def test_a_run_that_met_damage_is_run_again_once_for_each_damaged_artifact(capsys, monkeypatch):
    first, second = CorruptArtifact("a was damaged", "a", aside="a"), StageFailed("prune: b was damaged", True, aside="b")
    assert heal(failing(first, second)) == 7
    assert [line.partition(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "winnow: a was damaged",
        "winnow: prune: b was damaged",
    ]
    with pytest.raises(StageFailed, match="once more"):
        heal(failing(first, second, StageFailed("once more", True, aside="a")))
    for failure in (CorruptArtifact("read only", "a"), StageFailed("no", True), ValueError("bad input")):
        with pytest.raises(type(failure), match=str(failure)):
            heal(failing(failure))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CorruptArtifact):
        heal(failing(first))


def test_a_failure_without_words_takes_its_jobs(stage):
    def job(steps, say):
        say(said(Failed("", final=False)))
        return "exit code 1"

    conductor, model, _ = stage(job)
    with pytest.raises(StageFailed, match="^pretrain: exit code 1$"):
        conductor.make(model)


def test_a_second_try_submits_what_is_still_missing_and_forgets_the_first(stage):
    def first(steps, say):
        stage.publish(steps[0])
        say(published(steps[0]))
        say(said(Failed("ValueError: no", final=True)))

    def second(steps, say):
        stage.publish(steps[0])

    conductor, model, evaluation = stage(first, second)
    with pytest.raises(StageFailed, match="ValueError: no") as failed:
        conductor.make(evaluation)
    assert failed.value.final and conductor.make(model).key == model.artifact.key
    assert conductor.make(evaluation).key == evaluation.artifact.key
    assert conductor.submitter.submitted[1] == ["pretrain.size"]


def test_an_artifact_that_is_there_without_an_event_counts(stage):
    conductor, model, _ = stage(lambda steps, say: stage.publish(steps[0]) and None)
    assert conductor.make(model).key == model.artifact.key


def test_a_job_that_cannot_be_followed_or_submitted_is_a_failure_and_can_be_tried_again(stage):
    def lost(steps, say):
        raise ConnectionError("the cluster went away")

    conductor, model, _ = stage(lost, lambda steps, say: stage.publish(steps[0]) and None)
    with pytest.raises(StageFailed, match="ConnectionError: the cluster went away") as failed:
        conductor.make(model)
    assert failed.value.shared
    submit, conductor.submitter.submit = conductor.submitter.submit, lambda steps: 1 / 0
    with pytest.raises(ZeroDivisionError):
        conductor.make(model)
    conductor.submitter.submit = submit
    assert conductor.make(model).key == model.artifact.key


def test_stopping_stops_jobs_in_flight_only(stage):
    running, over = threading.Event(), threading.Event()

    def job(steps, say):
        running.set()
        assert over.wait(10)

    conductor, model, _ = stage(job)
    failures: list[BaseException] = []

    def make():
        try:
            conductor.make(model)
        except StageFailed as error:
            failures.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    assert running.wait(10)
    conductor.stop()
    thread.join(10)  # whoever waits for the job is let go before it has ended
    assert len(failures) == 1 and not over.is_set()
    over.set()
    with conductor.changed:
        assert conductor.changed.wait_for(lambda: not conductor.groups[model.id].running, 10)
    conductor.stop()
    assert conductor.submitter.stopped == ["job-1"]


def test_branches_beyond_the_most_jobs_wait_their_turn(tmp_path):
    store = LocalStore(tmp_path / "store")
    grid = {"pretrain": {"method": "dense", "tokens": 10_000}, "grid": {"seed": [0, 1, 2, 3]}}
    made = plan(store, BASE["stages"][0], grid)
    publish(store, made.by_id["prepare"], tmp_path / "prepare")
    branches = [step for step in made.steps if step.id.startswith("pretrain-") and not step.node.measures]
    goes_on, flying, most = threading.Semaphore(0), [], []

    def job(steps, say):
        flying.append(steps[0].id)
        most.append(len(flying))
        assert goes_on.acquire(timeout=10)
        publish(store, steps[0], tmp_path / steps[0].id)
        flying.remove(steps[0].id)

    class Alone(Yard):
        def follow(self, job, on_line):
            return SimpleNamespace(message=self.scripts[0](self.told[job], on_line) or "ended")

        def submit(self, steps):
            job = super().submit(steps)
            self.told = {**getattr(self, "told", {}), job: steps}
            return job

    conductor = Conductor(made, store, Alone(job), Watched(), most=2)
    threads = [threading.Thread(target=conductor.make, args=(step,)) for step in branches]
    for thread in threads:
        thread.start()
    for _ in branches:
        goes_on.release()
    for thread in threads:
        thread.join(10)
    assert len(branches) == 4 and max(most) <= 2
    assert all(store.record(step.artifact) for step in branches)
