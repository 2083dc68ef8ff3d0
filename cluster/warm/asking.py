"""Ask the warm process of a home for a copy of itself, and stand for that copy: what it prints, signals, how it ends.

Importing torch, transformers, DeepSpeed, Prefect and MLflow takes two cores ten seconds and more; a copy of a process that has
them takes a twentieth of one. ``python -I -S asking.py -m MODULE`` runs a module so; where there is no warm process, or it is
not fit for this environment, it runs it as Python would. A copy never outlives the one who asked. Standard library only, and
little of it: this is to start at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # typing takes as long as all else here
if TYPE_CHECKING:
    from typing import Any

VARIABLE = "WINNOW_WARM"  # the socket of the warm process: of what the servers of a home start, and of nothing else
PATIENCE = 60.0  # seconds a warm process may take to answer: it may be importing still
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Lost(RuntimeError):
    """The copy died."""


def alone() -> list[str]:
    """What a command begins with that is run in a copy: ``-m MODULE`` follows."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__)]


def ask(request: dict, environment: dict[str, str]) -> socket.socket | None:
    """A copy that does what is asked, at the other end; None if there is none to be had, and nothing has begun."""
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(PATIENCE)
    try:
        line.connect(path)
        told = json.dumps({**request, "environment": environment, "cwd": os.getcwd()}).encode()
        socket.send_fds(line, [len(told).to_bytes(8, "big")], [0, 1, 2])
        line.sendall(told)
        if "began" in receive(line):
            line.settimeout(None)
            return line
    except (OSError, Lost):
        pass
    line.close()
    return None


def receive(line: socket.socket) -> dict:
    """The next thing a copy tells."""
    told = bytearray()
    while not told.endswith(b"\n"):
        piece = line.recv(1)
        if not piece:
            raise Lost("the process that did the work was killed")
        told += piece
    return json.loads(told)


def call(target: str, arguments: list, environment: dict[str, str]) -> tuple[bool, Any]:
    """Whether a copy did it, and what ``module:function(*arguments)`` returned there, as JSON brings it."""
    line = ask({"call": target, "arguments": arguments}, environment)
    if line is None:
        return False, None
    with line:
        answer = receive(line)
    if "value" not in answer:
        raise Lost(f"the process that did the work ended: {answer}")
    return True, answer["value"]


def stand_for(line: socket.socket) -> int:
    """Pass signals on until the copy ends; its wait status."""
    for number in FORWARDED:
        signal.signal(number, lambda number, _: line.send(bytes([number])))
    try:
        return receive(line)["status"]
    except (Lost, OSError):
        return signal.SIGKILL


def main() -> None:
    module = sys.argv[2]
    line = ask({"module": module}, dict(os.environ))
    if line is None:
        os.execv(sys.executable, [sys.executable, "-m", module])
    status = stand_for(line)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
