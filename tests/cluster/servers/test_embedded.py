"""What answers on a server's port is asked who it is."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time

import pytest

from cluster.profile import CHECKOUT
from cluster.servers.embedded import Server, healthy, mlflow_server
from cluster.servers.processes import Process


def test_a_stranger_on_the_port_that_speaks_no_http_is_no_healthy_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b"\0\0\x12\x04\0\0\0\0\0 an HTTP/2 settings frame \r\n")

        stranger = threading.Thread(target=answer)
        stranger.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not healthy("ray", Server(process=Process.of(os.getpid()), mark="m", url=url))
        stranger.join()


@pytest.mark.slow
def test_a_first_mlflow_that_is_killed_while_it_makes_its_database_leaves_none_that_no_other_can_go_on_with(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        ports = {"mlflow": free.getsockname()[1]}

    def start() -> tuple[subprocess.Popen, Server]:
        launch = mlflow_server(tmp_path, tmp_path, ports)
        begun = subprocess.Popen(launch.command, env=launch.environment, cwd=CHECKOUT)
        return begun, Server(process=Process.of(begun.pid), mark="", url=launch.url)

    first, _ = start()
    while not any(b"TABLE jobs" in file.read_bytes() for file in tmp_path.rglob("mlflow.db")):  # one of its last tables
        assert first.poll() is None, "it made nothing"
        time.sleep(0.01)
    first.kill()
    assert first.wait() == -9
    again, server = start()
    try:
        while not healthy("mlflow", server):
            assert again.poll() is None, "it could not go on"
            time.sleep(0.1)
    finally:
        again.terminate()
        again.wait()
