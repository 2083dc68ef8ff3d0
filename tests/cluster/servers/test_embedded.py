"""What answers on a server's port is asked who it is."""

from __future__ import annotations

import os
import socket
import threading

from cluster.servers.embedded import Server, healthy
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
