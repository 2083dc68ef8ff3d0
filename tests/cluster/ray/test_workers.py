"""Work on real Ray workers: results and failures come home, a killed rank is tried again, a mistake is not."""

from __future__ import annotations

import json

import pytest

from cluster.ray.jobs import Jobs
from cluster.ray.lines import parse_line
from cluster.ray.targets import load, run_target
from cluster.servers.services import Services

pytestmark = pytest.mark.slow

TARGETS = """
import json, os, signal, time

def event(**fields):
    print("@winnow " + json.dumps({**fields, "time": time.time()}))

def echo(payload):
    event(kind="echo", **payload)
    return {**payload, "threads": os.environ["OMP_NUM_THREADS"], "variable": os.environ.get("VARIABLE"), "pid": os.getpid()}

def nap(payload):
    time.sleep(payload["seconds"])
    return time.time()

def fail(payload):
    raise KeyError("no such layer")

def die(payload):
    os.kill(os.getpid(), signal.SIGKILL)

class Counter:
    def __init__(self, payload):
        self.total = payload["start"]

    def add(self, number):
        self.total += number
        return self.total, os.environ["OMP_NUM_THREADS"], os.getpid() != os.getppid()

def rank(payload):
    import torch, torch.distributed
    total = torch.ones(1) * (torch.distributed.get_rank() + 1)
    torch.distributed.all_reduce(total)
    event(kind="rank", rank=int(os.environ["RANK"]), world=int(os.environ["WORLD_SIZE"]), total=total.item(),
          local=os.environ["LOCAL_RANK"], threads=torch.get_num_threads(), accelerator=os.environ["DS_ACCELERATOR"])
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    if payload["mode"] == "mistake" and last:
        raise ValueError("sparsity 2:4 contradicts 0.7")
    if payload["mode"] == "kill" and last and not os.path.exists(payload["mark"]):
        open(payload["mark"], "w").close()
        event(kind="killed")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    if payload["mode"] == "always" and last:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()
    event(kind="finished", rank=torch.distributed.get_rank())
"""

DRIVER = """
import json, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from cluster.ray.workers import on_cluster, run_group, run_task, start_actor, start_task
from targets import event

def attempt(name, call):
    try:
        event(kind=name, result=call())
    except (RuntimeError, ValueError) as error:
        event(kind=name, error=str(error))

request = json.loads(sys.argv[1])
event(kind="driver")
if "group" in request:
    attempt("group", lambda: run_group("targets:rank", storage=request["place"] + "/train", **request["group"]))
else:
    with ThreadPoolExecutor(4) as pool:  # all of them find that nobody has joined the cluster yet
        attempt("at-once", lambda: len(list(pool.map(lambda _: run_task("targets:nap", {"seconds": 0}, cpus=0.5), range(4)))))
    attempt("echo-result", lambda: run_task("targets:echo", {"a": 1}, cpus=2, env={"VARIABLE": "x"}))
    attempt("fail", lambda: run_task("targets:fail", {}))
    attempt("die", lambda: run_task("targets:die", {}))
    attempt("typo", lambda: run_task("targets:ecko", {}))
    attempt("large", lambda: run_task("targets:echo", {}, cpus=1000))
    counter = start_actor("targets:Counter", {"start": 1})
    attempt("counter", lambda: [pending.result()[:2] for pending in [counter.call("add", 2), counter.call("add", 3)]])
    attempt("counter-fails", lambda: counter.call("subtract", 2).result())
    event(kind="on-cluster", value=on_cluster())
    del counter
    begun = time.time()
    naps = [start_task("targets:nap", {"seconds": 3}, cpus=0.5) for _ in range(2)]
    attempt("naps", lambda: [nap.result() - begun for nap in naps])
"""


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """Run the driver as a job; its events by kind, in order."""
    place = tmp_path_factory.mktemp("work")
    (place / "targets.py").write_text(TARGETS)
    (place / "driver.py").write_text(DRIVER)
    services = Services(tmp_path_factory.mktemp("workers-home")).start(["ray"])
    jobs = Jobs.of(services)

    def run(key, request):
        environment = {"PYTHONPATH": str(place), "WINNOW_TEST_PLACE": str(place)}
        told = json.dumps({**request, "place": str(place)})
        job = jobs.submit(key, ["python", str(place / "driver.py"), told], environment)
        events = []

        def note(line):
            if event := parse_line(line):
                events.append(event)

        result = jobs.follow(job, note)
        assert result.ok, result
        return events

    yield run, place
    services.stop()


def of(events, kind):
    return [event for event in events if event["kind"] == kind]


def test_tasks_return_fail_and_run_side_by_side(drive):
    events = drive[0]("tasks", {})
    assert of(events, "at-once")[0].get("result") == 4, "as evaluations on several workers begin"
    (echo,) = of(events, "echo-result")
    assert {name: echo["result"][name] for name in ("a", "threads", "variable")} == {"a": 1, "threads": "2", "variable": "x"}
    assert of(events, "echo")[0]["a"] == 1
    assert "targets:fail: KeyError: 'no such layer'" in of(events, "fail")[0]["error"]
    assert "in fail" in of(events, "fail")[0]["error"]  # the traceback of the worker
    assert "targets:die: WorkerCrashedError" in of(events, "die")[0]["error"]
    assert "AttributeError: module 'targets' has no attribute 'ecko'" in of(events, "typo")[0]["error"]
    assert "1 x 1000 CPU were asked for, this machine has" in of(events, "large")[0]["error"]
    assert of(events, "counter")[0]["result"] == [[3, "1"], [6, "1"]]
    assert "targets:Counter.subtract: AttributeError" in of(events, "counter-fails")[0]["error"]
    assert of(events, "on-cluster")[0]["value"]
    assert max(of(events, "naps")[0]["result"]) < 6 + 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_group_reduces_and_survives_a_killed_rank(drive, ranks):
    run, place = drive
    payload = {"mode": "kill", "mark": str(place / f"mark-{ranks}")}
    events = run(f"kill-{ranks}", {"group": {"payload": payload, "ranks": ranks, "max_failures": 1}})
    tries = of(events, "rank")
    assert len(tries) == 2 * ranks and len(of(events, "killed")) == 1
    assert {event["total"] for event in tries} == {sum(range(1, ranks + 1))}
    assert {(event["rank"], event["world"], event["threads"], event["accelerator"]) for event in tries} == {
        (rank, ranks, 1, "cpu") for rank in range(ranks)
    }
    assert sorted(event["rank"] for event in of(events, "finished")) == list(range(ranks))
    assert of(events, "group")[0]["result"] is None


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_mistake_in_the_target_is_tried_once(drive, ranks):
    request = {"group": {"payload": {"mode": "mistake"}, "ranks": ranks, "max_failures": 3}}
    events = drive[0](f"mistake-{ranks}", request)
    assert len(of(events, "rank")) == ranks
    error = of(events, "group")[0]["error"]
    assert error.startswith(f"targets:rank on {ranks} rank") and "ValueError: sparsity 2:4 contradicts 0.7" in error


def test_a_rank_that_always_dies_ends_the_group(drive):
    request = {"group": {"payload": {"mode": "always"}, "ranks": 1, "max_failures": 2}}
    events = drive[0]("always", request)
    assert len(of(events, "rank")) == 3
    assert "WorkerCrashedError" in of(events, "group")[0]["error"]


def test_a_target_is_a_module_and_a_function():
    assert load("json:dumps")({}) == "{}"
    assert run_target("json:dumps", {}, {"OMP_NUM_THREADS": "1"}) == (False, "{}")
    failed, report = run_target("json:loads", "nonsense", {"OMP_NUM_THREADS": "1"})
    assert failed and report["mistake"] and report["text"].startswith("JSONDecodeError: Expecting value")
    with pytest.raises(ValueError, match="target 'json.dumps' should be 'module:function'"):
        load("json.dumps")
