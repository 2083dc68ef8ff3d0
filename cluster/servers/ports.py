"""The ports of a home: the same at every start, so that bookmarks, logins and flows under way find their servers again.

They follow from the home's path, below the range that the kernel deals to outgoing connections, and stand in ports.json,
where a person may write others. Servers that stand insist on theirs: one that came up elsewhere would not be found. Those
of a single run are asked for by nobody else, and go where there is room.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
NAMES = {"ray": ("ray", "ray_agent", "ray_client"), "prefect": ("prefect",), "mlflow": ("mlflow",), "dashboard": ("dashboard",)}
FIRST, COUNT, APART = 20_000, 12_000, 6  # neighbours of a home's first port are its other ports


class PortTaken(OSError):
    """Somebody else listens where a server of this home belongs."""


def ports_for(home: Path, kind: str, fixed: bool, avoided: Iterable[int] = ()) -> dict[str, int]:
    """The ports of one server. ``fixed``: those of ports.json or none; else free ones take the place of taken ones.

    ``avoided`` are ports that were tried and lost to somebody faster.
    """
    file = home / "ports.json"
    known = _read(file)
    used, chosen = {*known.values(), *avoided}, {}
    for name in NAMES.get(kind, ()):
        port = known.get(name)
        if port is not None and fixed and taken(port):
            raise PortTaken(
                f"port {port}, where {name} answers in this home, is taken{_by_whom(port)}; end that, or write another port "
                f'for "{name}" in {file}'
            )
        if port is None or port in avoided or taken(port):
            port = _free(home, name, used)
            known.setdefault(name, port)
        used.add(port)
        chosen[name] = port
    if known != _read(file):
        file.write_text(json.dumps(known, indent=1) + "\n")
    return chosen


def port_of_home(home: Path, name: str) -> int:
    """Where a server of this home answers, whether it runs or not."""
    known = _read(home / "ports.json")
    return known.get(name) or next(iter(ports_for(home, name, fixed=False).values()))


def taken(port: int) -> bool:
    """Whether a server could not listen there now; connections that are ending do not count."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except OSError:
        return True
    return False


def _free(home: Path, name: str, used: set[int]) -> int:
    names = [name for names in NAMES.values() for name in names]
    place = int(hashlib.sha256(str(home).encode()).hexdigest(), 16) % (COUNT // APART) * APART + names.index(name)
    for step in range(COUNT):
        port = FIRST + (place + step * APART) % COUNT
        if port not in used and not taken(port):
            return port
    raise OSError(f"no port from {FIRST} to {FIRST + COUNT} is free")


def _read(file: Path) -> dict[str, int]:
    if not file.exists():
        return {}
    with suppress(ValueError):
        found = json.loads(file.read_text())
        ports = found.values() if isinstance(found, Mapping) else [0]
        if all(isinstance(port, int) and 0 < port < 65536 for port in ports) and len(set(ports)) == len(ports):
            return dict(found)
    raise ValueError(f"{file}: should be one JSON object of names and different ports from 1 to 65535; mend it, or remove it")


def _by_whom(port: int) -> str:
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""
