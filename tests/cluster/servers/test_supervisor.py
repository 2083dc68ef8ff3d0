"""What dies is started again where it was, at once the first time and ever more rarely after; flows outlive what began them."""

from __future__ import annotations

import sys
import time

import psutil
import pytest

from cluster.servers import embedded as servers
from cluster.servers.embedded import Launch
from cluster.servers.processes import family
from cluster.servers.services import Services
from cluster.servers.supervisor import Supervisor, Watch, pause

ANSWERS = """
import http.server, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
BEGINS = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); time.sleep(99)"


@pytest.fixture
def services(tmp_path, monkeypatch):
    """Something that answers in a moment where MLflow would take ten seconds."""

    def launch(home, temporary, ports):
        command = [sys.executable, "-c", ANSWERS, str(ports["mlflow"])]
        return Launch(command=command, environment={}, url=f"http://127.0.0.1:{ports['mlflow']}")

    monkeypatch.setitem(servers.LAUNCHES, "mlflow", launch)
    services = Services(tmp_path / "home")
    yield services
    services.stop()


def tend_until(supervisor: Supervisor, what) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        assert supervisor.tend()
        time.sleep(0.05)


def test_a_dead_server_comes_back_on_its_port_and_a_second_death_is_waited_after(services):
    services.start(["mlflow"])
    said: list[str] = []
    supervisor = Supervisor(services, said.append)
    first = services.server("mlflow")
    psutil.Process(first.process.pid).kill()
    tend_until(supervisor, lambda: "mlflow answers again" in said)
    second = services.server("mlflow")
    assert (second.url, second.restarts, second.streak) == (first.url, 1, 1) and second.process != first.process
    psutil.Process(second.process.pid).kill()
    tend_until(supervisor, lambda: services.server("mlflow").died)
    assert pause(services.server("mlflow")) == 4.0 and services.server("mlflow").process == second.process
    assert said[0].startswith("mlflow has died and is started again; what it wrote is in ")
    assert said[-1].startswith("mlflow has died and is started again in 4 s; ")
    assert services.status()["mlflow"].restarts == 1


def test_a_run_hears_of_a_death_that_was_mended_before_it_looked_and_hears_once(services):
    services.start(["mlflow"], mode="up")
    said: list[str] = []
    watch, told = Watch(services, said.append), {}
    watch._tell(services.load(), told)
    first = services.server("mlflow")
    psutil.Process(first.process.pid).kill()
    supervisor = Supervisor(services, lambda line: None)
    tend_until(supervisor, lambda: services.server("mlflow").process.alive and services.server("mlflow").restarts)
    for _ in range(2):
        watch._tell(services.load(), told)
    (line,) = said
    assert line.startswith("mlflow has died and is started again; what it wrote is in ")


def test_a_home_without_servers_needs_no_supervisor(services):
    services.start(["mlflow"])
    services.stop()
    assert not Supervisor(services, print).tend()


def test_flows_outlive_the_server_that_began_them_and_end_with_down(services):
    begins = [sys.executable, "-c", BEGINS]
    services.start(["mlflow", "deployments"], mode="up", deployments=begins)
    dead = services.server("deployments")
    while len(flows := [one for one in family([dead.process], {dead.mark}) if one.pid != dead.process.pid]) == 0:
        time.sleep(0.05)
    psutil.Process(dead.process.pid).kill()
    said: list[str] = []
    tend_until(Supervisor(services, said.append), lambda: services.server("deployments").restarts)
    assert services.server("deployments").process != dead.process and flows[0].is_running()
    services.stop()
    assert not any(flow.is_running() and flow.status() != psutil.STATUS_ZOMBIE for flow in flows)
