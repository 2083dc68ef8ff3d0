"""One Ray job per key: attached to, not doubled; followed line by line; ended with a reason."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from cluster.ray import follower
from cluster.ray.follower import Away
from cluster.ray.jobs import Jobs
from cluster.ray.lines import parse_line
from cluster.servers.services import Services


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    services = Services(tmp_path_factory.mktemp("jobs-home")).start(["ray"])
    yield services
    services.stop()


@pytest.fixture(scope="module")
def jobs(services):
    return Jobs.of(services)


def run(jobs, key, code, **options):
    return jobs.submit(key, ["python", "-u", "-c", code], **options)


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('@winnow {"a": 1}', {"a": 1}),
        ('\x1b[36m(run pid=12, ip=10.0.0.1)\x1b[0m @winnow {"a": {"b": "}"}}\x1b[0m', {"a": {"b": "}"}}),
        ("@winnow {broken", None),
        ("@winnow [1]", None),
        ("no event", None),
        ("", None),
    ],
)
def test_an_event_is_found_behind_whatever_ray_writes_before_it(line, event):
    assert parse_line(line) == event


def test_secrets_do_not_travel_in_a_job():
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY looks like a secret"):
        Jobs("http://127.0.0.1:1", local=True).submit("key", "true", {"AWS_SECRET_ACCESS_KEY": "x"})


@pytest.mark.parametrize("key", ["", "../up", "a b", "-x", "a;b"])
def test_a_key_is_a_plain_word(key):
    with pytest.raises(ValueError, match="should be letters"):
        Jobs("http://127.0.0.1:1").submit(key, "true")


def test_an_answer_that_breaks_off_is_waited_for_and_then_told_as_a_cluster_that_is_away(monkeypatch):
    asked = []

    class Dying(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path == "/api/version"
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                self.wfile.write(json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": ""}).encode())

        def do_POST(self):
            asked.append(self.path)
            self.close_connection = True  # as a raylet that was killed does

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("cluster.ray.jobs.AGENT_SECONDS", 1.5)
    address = f"http://127.0.0.1:{server.server_port}"
    with pytest.raises(Away, match=f"^Ray at {address} does not answer: ConnectionError$"):
        Jobs(address, local=True).submit("key", ["true"])
    server.shutdown()
    assert len(asked) > 1


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("cluster.ray.jobs.AGENT_SECONDS", 0.5)
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:1/api/jobs/key-1 does not answer") as caught:
        Jobs("http://127.0.0.1:1").submit("key", "true")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_without_the_token_there_is_no_job(jobs):
    with pytest.raises(ConnectionError, match=r"answered 40[13] .*is RAY_AUTH_TOKEN right"):
        Jobs(jobs.address, "wrong").submit("intruder", "true")
    assert jobs.info("intruder-1") is None


@pytest.mark.slow
def test_lines_arrive_as_they_are_written_and_all_of_them(jobs, monkeypatch):
    monkeypatch.setattr(follower, "STREAM", 0.6)  # the connection is lost again and again
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # somebody else's cluster
    code = """
import time
for part in range(3):
    for number in range(1000):
        print(f"line {part * 1000 + number} \\u00e4\\u2713")
    print("now", time.time())
    time.sleep(1.5)
print("without a newline", end="")
"""
    lags, lines = [], []

    def note(line):
        lines.append(line)
        if line.startswith("now "):
            lags.append(time.time() - float(line.split()[1]))

    result = jobs.follow(run(jobs, "lines", code, environment={"WINNOW_TEST": "1"}), note)
    assert (result.status, result.exit_code, result.ok) == ("SUCCEEDED", 0, True)
    assert [line for line in lines if line.startswith("line ")] == [f"line {number} ä✓" for number in range(3000)]
    assert lines[-1] == result.last_lines[-1] == "without a newline"
    assert max(lags[1:]) < 3, lags
    again = []
    assert jobs.follow("lines-1", again.append) == result and again == lines


@pytest.mark.slow
def test_a_failed_driver_is_reported_with_code_and_last_words(jobs):
    failed = jobs.follow(run(jobs, "exit", "print('about to fail'); raise SystemExit(3)"))
    assert (failed.status, failed.exit_code, failed.ok) == ("FAILED", 3, False)
    assert failed.last_lines[-1] == "about to fail" and "about to fail" in failed.message
    killed = jobs.follow(run(jobs, "kill", "import os; print('here', flush=True); os.kill(os.getpid(), 9)"))
    assert (killed.status, killed.exit_code) == ("FAILED", 137)
    assert killed.last_lines[-1] == "here" and "failed with exit code" in killed.message


@pytest.mark.slow
def test_one_key_is_one_job_however_many_ask(services, jobs):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    found = []
    askers = [Jobs.of(services) for _ in range(6)]
    threads = [threading.Thread(target=lambda asker=asker: found.append(run(asker, "once", code))) for asker in askers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["once-1"] * 6
    assert run(jobs, "once", code) == "once-1"
    seen = jobs.follow("once-1", lambda line: line == "begun")  # True ends the following, not the job
    assert seen.status == "RUNNING" and jobs.info("once-1")["status"] == "RUNNING"
    assert jobs.stop("once-1")
    assert jobs.follow("once-1").status == "STOPPED"
    assert run(jobs, "once", "print('second try')") == "once-2"
    assert jobs.follow("once-2").ok
    assert not jobs.stop("never-1")


@pytest.mark.slow
def test_a_follower_can_be_told_to_stop_while_another_goes_on(jobs):
    job = run(jobs, "quiet", "import time; time.sleep(4); print('done')")
    results, stop = {}, threading.Event()
    patient = threading.Thread(target=lambda: results.update(patient=jobs.follow(job)))
    hasty = threading.Thread(target=lambda: results.update(hasty=jobs.follow(job, stop=stop)))
    patient.start()
    hasty.start()
    stop.set()
    hasty.join(2)
    assert results["hasty"].status in ("PENDING", "RUNNING") and "patient" not in results
    patient.join(60)
    assert results["patient"].ok and results["patient"].last_lines[-1] == "done"


@pytest.mark.slow
def test_a_job_the_cluster_does_not_know_is_lost_not_awaited(jobs):
    result = jobs.follow("unknown-1")
    assert result.status == "LOST" and "knows no job unknown-1" in result.message


class Young(BaseHTTPRequestHandler):
    """A Ray dashboard whose agent is not there yet, in its own words."""

    posts: list[str] = []

    def do_GET(self):
        version = {"version": "4", "ray_version": "2", "ray_commit": "0"}
        self.answer(200, version) if self.path == "/api/version" else self.answer(404, {})

    def do_POST(self):
        self.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["submission_id"])
        if len(self.posts) < 3:
            self.answer(500, "No available agent to submit job, please try again later.")
        else:
            self.answer(200, {"job_id": self.posts[-1], "submission_id": self.posts[-1]})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_cluster_that_has_no_agent_yet_is_asked_again(monkeypatch):
    monkeypatch.setattr("cluster.ray.jobs.time.sleep", lambda seconds: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Young)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert Jobs(f"http://127.0.0.1:{server.server_port}", local=True).submit("young", "true") == "young-1"
    assert Young.posts == ["young-1"] * 3
    server.shutdown()


@pytest.mark.slow
def test_a_cluster_that_dies_under_a_job_loses_it(tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "PATIENCE", 2.0)
    services = Services(tmp_path / "home").start(["ray"])
    try:
        jobs = Jobs.of(services)
        job = run(jobs, "orphan", "import time; print('begun', flush=True); time.sleep(600)")
        jobs.follow(job, lambda line: line == "begun")
        services.stop()
        result = jobs.follow(job)
        assert result.status == "LOST" and "has not answered" in result.message and "begun" in result.last_lines
    finally:
        services.stop()
