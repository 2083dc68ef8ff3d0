"""Real servers on loopback: one set per home, behind tokens, adopted after a kill, and nothing left after a stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from cluster.profile import CHECKOUT
from cluster.servers import embedded as servers
from cluster.servers.embedded import Launch, Server, headers
from cluster.servers.ports import PortTaken, ports_for
from cluster.servers.private import write_private
from cluster.servers.processes import MARK, Process, end, family, spawn
from cluster.servers.services import Services, State
from cluster.store.owners import KERNEL
from flows.provenance import process_is_alive, this_process

OWNER = """
import sys, time
from cluster.servers.services import Services
s = Services(sys.argv[1]).start()
print('up', flush=True)"""
PREFECT_CLIENT = """
from prefect import flow
@flow
def answer(): return 42
print(answer())
"""


def python(code, *arguments, environment=None):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **(environment or {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def status_of(url, header=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=header or {}), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def listens(url):
    host, port = url.split("://")[1].split("/")[0].split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def members(state):
    return family([server.process for server in state.servers.values()], {server.mark for server in state.servers.values()})


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    """A set whose owner was killed with -9, taken over by this process; whatever happens, it is gone afterwards."""
    home = tmp_path_factory.mktemp("home")
    owner = python(OWNER + "; time.sleep(600)", home)
    assert owner.stdout.readline() == "up\n", owner.stdout.read()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    before = State.model_validate_json((home / "services.json").read_text())
    begun = time.monotonic()
    services = Services(home).start()
    yield services, before, time.monotonic() - begun
    services.stop()


@pytest.mark.slow
def test_services_of_a_killed_owner_are_adopted(adopted):
    services, before, seconds = adopted
    assert {kind: server.process for kind, server in services.state.servers.items()} == {
        kind: server.process for kind, server in before.servers.items()
    }
    assert seconds < 5
    assert [owner.pid for owner in services.state.owners] == [os.getpid()]
    assert {kind: (health.alive, health.healthy) for kind, health in services.status().items()} == {
        "ray": (True, True),
        "prefect": (True, True),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path"), [("ray", "/api/jobs/"), ("ray", "/api/v0/logs"), ("prefect", "/flows/count")])
def test_no_api_answers_without_its_token(adopted, kind, path):
    server = adopted[0].server(kind)
    assert status_of(server.url + path) in (401, 403, 405)
    assert status_of(server.url + path, headers(kind, "winnow:wrong")) in (401, 403, 405)
    assert status_of(server.url + servers.PROBES[kind]) == 401
    assert status_of(server.url + servers.PROBES[kind], headers(kind, server.token)) == 200


@pytest.mark.slow
def test_a_foreign_page_gets_no_permission_from_prefect(adopted):
    server = adopted[0].server("prefect")
    header = {**headers("prefect", server.token), "Origin": "https://evil.example"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/admin/version", headers=header)) as answer:
        assert answer.headers.get("Access-Control-Allow-Origin") in (None, server.url.removesuffix("/api"))


@pytest.mark.slow
def test_secrets_are_in_private_files_and_on_no_command_line(adopted):
    services = adopted[0]
    tokens = [server.token for server in services.state.servers.values()]
    for path in [services.file, *(services.home / "secrets").iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert Path(services.state.temporary).stat().st_mode & 0o077 == 0
    for process in members(services.state):
        assert not any(token in " ".join(process.cmdline()) for token in tokens)
    for log in (services.home / "logs").iterdir():
        assert not any(token in log.read_text(errors="replace") for token in tokens)


def listening(state):
    return [
        connection.laddr
        for process in members(state)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]


@pytest.mark.slow
def test_whatever_listens_listens_on_loopback_only(adopted):
    state = adopted[0].state
    wanted = {port for server in state.servers.values() for port in server.ports.values()}
    deadline = time.monotonic() + 60  # Ray's client server is the last to listen, and nobody waits for it
    while wanted - {socket.port for socket in listening(state)}:
        assert time.monotonic() < deadline, listening(state)
        time.sleep(0.2)
    assert {socket.ip for socket in listening(state)} <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.slow
def test_a_flow_runs_with_the_environment_alone(adopted):
    output, _ = python(PREFECT_CLIENT, environment=adopted[0].environment()).communicate(timeout=120)
    assert "42" in output.splitlines(), output  # Prefect may have a word to add


@pytest.mark.slow
def test_a_start_that_loses_a_port_to_somebody_else_takes_another_and_up_says_whose_it_is(tmp_path):
    services = Services(tmp_path / "home")
    try:
        services.home.mkdir()
        port = ports_for(services.home, "prefect", fixed=True)["prefect"]
        with socket.create_server(("127.0.0.1", port)):
            with pytest.raises(
                PortTaken, match=f"port {port}, where prefect answers in this home, is taken by process {os.getpid()}"
            ):
                services.start(["prefect"], mode="up")
            assert not services.file.exists()
            services.start(["prefect"])
            assert services.status()["prefect"].healthy and services.server("prefect").ports["prefect"] != port
    finally:
        services.stop()


@pytest.mark.slow
def test_two_starters_at_once_share_one_set_and_leave_it_to_the_owner(adopted):
    services, before, _ = adopted
    starters = [python(OWNER + "; s.release()", services.home) for _ in range(2)]
    assert all("up" in starter.communicate(timeout=60)[0] for starter in starters)
    assert {kind: server.process for kind, server in Services(services.home).state.servers.items()} == {
        kind: server.process for kind, server in before.servers.items()
    }
    assert services.status()["ray"].healthy


@pytest.mark.slow
def test_the_last_owner_stops_everything(adopted):
    services = adopted[0]
    state, running = services.state, members(services.state)
    assert len(running) > 10
    services.release()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)
    assert not any(listens(server.url) for server in state.servers.values())
    assert not Path(state.temporary).exists() and not services.file.exists()
    assert services.status() == {} and services.environment()["MLFLOW_TRACKING_URI"].startswith("sqlite:///")


@pytest.fixture
def standing(tmp_path):
    services = Services(tmp_path / "home")
    yield services
    services.stop()


@pytest.mark.slow
def test_up_stands_until_down_and_replaces_what_died(standing):
    sleeper = [sys.executable, "-c", "import os, time; print(os.environ['MLFLOW_TRACKING_URI'], flush=True); time.sleep(99)"]
    standing.start(["mlflow", "deployments"], mode="up", deployments=sleeper)
    url, first = standing.server("mlflow").url, standing.server("deployments").process
    standing.release()
    assert standing.status()["mlflow"].healthy and standing.status()["deployments"].healthy
    experiment = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert (status_of(experiment), status_of(experiment, {"Host": "evil.example"})) == (200, 403)
    assert standing.environment()["MLFLOW_TRACKING_URI"] == url
    died = first.find()
    died.kill()
    died.wait(20)
    assert not standing.status()["deployments"].alive
    Services(standing.home).start(["mlflow", "deployments"], mode="up", deployments=sleeper)
    assert Services(standing.home).server("deployments").process != first
    assert Services(standing.home).server("mlflow").url == url
    running = members(Services(standing.home).state)
    standing.stop()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in running)


def test_a_server_that_dies_at_start_is_reported_with_its_last_words(standing, monkeypatch):
    broken = Launch(command=[sys.executable, "-c", "print('the disk is full'); exit(3)"], environment={}, url="http://x:1")
    monkeypatch.setitem(servers.LAUNCHES, "prefect", lambda home, temporary, ports: broken)
    with pytest.raises(RuntimeError, match=r"prefect ended with 3 while starting: the disk is full; more in .*prefect.log$"):
        standing.start(["prefect"])
    assert not standing.file.exists() and standing.state is None


def test_an_unknown_service_is_answered_with_the_known_ones(standing):
    with pytest.raises(
        ValueError, match="no service 'redis'; choose one of ray, prefect, mlflow, dashboard, warm, deployments"
    ):
        standing.start(["redis"])
    with pytest.raises(RuntimeError, match="no ray server runs in"):
        standing.server("ray")


def test_stop_leaves_a_stranger_with_a_recorded_pid_alone(standing):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"]) as stranger:
        record = Process(pid=stranger.pid, created=f"1@{KERNEL}")
        state = State(temporary="/tmp/winnow-nothing", servers={"ray": Server(process=record, mark="m", url="http://x:1")})
        write_private(standing.file, state.model_dump_json())
        assert not Services(standing.home).status()["ray"].alive
        Services(standing.home).stop()
        assert stranger.poll() is None
        stranger.kill()


def test_a_clock_that_is_set_makes_no_stranger_of_a_process(monkeypatch):
    """The time of the boot moves with it, and by a second now and then without; a run that went on was closed as dead."""
    record, name = Process.of(os.getpid()), this_process()
    told, boot = psutil.Process().create_time(), psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 3600)
    assert psutil.Process().create_time() > told + 3000
    assert record.alive and Process.of(os.getpid()) == record and process_is_alive(name) and 0 < record.age < 86_400
    assert not record.model_copy(update={"created": f"1@{KERNEL}"}).alive
    assert not record.model_copy(update={"created": record.created.replace(KERNEL, "another boot")}).alive


def test_what_a_fork_server_keeps_on_disk_goes_with_it(tmp_path):
    """Ray's dashboard has one, and every run left a folder of it."""
    server = "import multiprocessing as m, time; m.get_context('forkserver').Process(target=time.sleep, args=(99,)).start(); "
    server = f"if __name__ == '__main__': {server}print('ready', flush=True); time.sleep(99)"
    (tmp_path / "server.py").write_text(server)
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # a socket's path is short
        environment = {**os.environ, "TMPDIR": temporary}
        process = spawn([sys.executable, str(tmp_path / "server.py")], environment, "mark-a", tmp_path / "a.log", tmp_path)
        while (tmp_path / "a.log").read_text() != "ready\n":
            assert process.poll() is None, (tmp_path / "a.log").read_text()
            time.sleep(0.05)
        assert [path.name[:5] for path in Path(temporary).iterdir()] == ["pymp-"]
        end([Process.of(process.pid)], {"mark-a"}, grace=0.5)
        process.wait()
        assert not list(Path(temporary).iterdir())


def test_a_state_that_cannot_be_read_is_not_taken_for_no_servers(tmp_path):
    """They ran on, and winnow down said that there were none."""
    (tmp_path / "services.json").write_text('{"mode": "up", ')
    with pytest.raises(ValueError, match=f"^{tmp_path}/services.json is damaged, or of another version of Winnow; end the ser"):
        Services(tmp_path)


def test_a_secret_that_was_lost_on_the_disk_is_made_anew(tmp_path):
    (tmp_path / "secret").touch()
    assert servers._kept_secret(tmp_path / "secret", "fresh") == "fresh" == (tmp_path / "secret").read_text()
    assert servers._kept_secret(tmp_path / "secret", "other") == "fresh"


@pytest.mark.slow
def test_a_family_is_found_after_its_parent_died_and_in_other_sessions(tmp_path):
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], "
    parent = child + "start_new_session=True); print('ready', flush=True); time.sleep(99)"
    process = spawn([sys.executable, "-c", parent], dict(os.environ), "mark-a", tmp_path / "a.log", tmp_path)
    root = Process.of(process.pid)
    while "ready" not in (tmp_path / "a.log").read_text():
        time.sleep(0.05)
    assert len(family([root], {"mark-a"})) == 2
    process.kill()
    process.wait()
    (orphan,) = family([root], {"mark-a"})
    assert orphan.environ()[MARK] == "mark-a" and not family([root], {"mark-b"})
    end([root], {"mark-a"})
    assert not family([root], {"mark-a"}) and json.loads(root.model_dump_json())["pid"] == process.pid


@pytest.mark.slow
def test_an_orphan_whose_environment_no_longer_says_whose_it_is_is_found_by_its_session(tmp_path):
    """Ray's agents write their titles over it."""
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], env={})"
    parent = f"import subprocess, sys, time; {child}; print('ready', flush=True); time.sleep(99)"
    process = spawn([sys.executable, "-c", parent], dict(os.environ), "mark-a", tmp_path / "a.log", tmp_path)
    root = Process.of(process.pid)
    while "ready" not in (tmp_path / "a.log").read_text():
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(family([root], {"mark-a"})) == 1
    end([root], {"mark-a"})
    assert not family([root], {"mark-a"})
