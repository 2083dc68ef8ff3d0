"""Several hosts on one machine: a network namespace each, with an address, a name, a /tmp and an interpreter path of its own,
and without the checkout. Where namespaces are not permitted: processes on addresses of the loopback, told from hosts loudly.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from typing import Any

import psutil

from cluster.profile import CHECKOUT

ONE_HOST = "WINNOW_TEST_ONE_HOST"  # what is done without namespaces can be tried where there are some
ENTER = r"""set -e
hostname "$WINNOW_HOST"
mount --bind "$WINNOW_HOSTS" /etc/hosts
mount -t tmpfs none /mnt
mkdir -p /mnt/shared "/mnt/$WINNOW_PYTHON" /mnt/own
mount --bind "$WINNOW_SHARED" /mnt/shared
mount --bind "$WINNOW_OWN" /mnt/own
mount --bind "$WINNOW_PREFIX" "/mnt/$WINNOW_PYTHON"
mount --bind "$WINNOW_OWN/tmp" /tmp
if [ -n "$WINNOW_HIDDEN" ]; then mount -t tmpfs none "$WINNOW_HIDDEN"; fi
cd /mnt/own
exec "$@"
"""


def permitted() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.environ.get(ONE_HOST):
        return f"{ONE_HOST} is set"
    if os.geteuid():
        return "network namespaces need root"
    name = f"winnow-{os.getpid()}-try"
    probe = f"ip netns add {name} && ip -n {name} link add v0 type veth peer name v1 && ip netns exec {name} unshare -mu true"
    try:
        done = subprocess.run(["sh", "-c", probe], capture_output=True, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


class Host:
    """A host of its own; here, a namespace of a network."""

    def __init__(self, network: Network, name: str, address: str, python: str, own: Path) -> None:
        self.network, self.name, self.address, self.own = network, name, address, own
        self.python = f"/mnt/{python}/bin/python"
        self.shared, self.place = "/mnt/shared", "/mnt/own"
        self.loops: list[Popen] = []
        (own / "tmp").mkdir(parents=True)

    def start(self, command: Sequence[str], environment: Mapping[str, str] = {}, log: str = "log", **options: Any) -> Popen:
        """Run a command on this host, as nobody's child of this checkout."""
        given = {"PATH": f"{Path(self.python).parent}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": self.place, "LANG": "C.UTF-8"}
        options = {"stdout": (self.own / f"{log}.log").open("ab"), "stderr": subprocess.STDOUT, **options}
        environment = {**given, "OMP_NUM_THREADS": "1", **environment}
        return Popen(self._enter(list(command)), env={**environment, **self._settings()}, process_group=0, **options)

    def keep(self, command: Sequence[str], environment: Mapping[str, str] = {}, log: str = "log") -> None:
        """The same, and again whenever it ends, as a host's own supervisor would."""
        loop = f"while :; do {shlex.join(command)}; echo ended with $?; sleep 1; done"
        self.loops.append(self.start(["sh", "-c", loop], environment, log))

    def processes(self) -> list[psutil.Process]:
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False).stdout
        processes = []
        for pid in found.split():
            with suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(int(pid)))
        return processes

    def runs(self, title: str) -> bool:
        """Whether a process of this title is here: Ray names its workers after what they do."""
        for process in self.processes():
            with suppress(psutil.Error):
                if process.cmdline()[:1] == [title]:
                    return True
        return False

    def cut(self) -> None:
        """Its cable is pulled: nobody is told, and whoever waits for it waits."""
        _ip("-n", self.network.switch, "link", "set", self.name, "down")

    def mend(self) -> None:
        _ip("-n", self.network.switch, "link", "set", self.name, "up")

    def remove(self) -> None:
        """The machine is gone."""
        for loop in self.loops:
            loop.kill()
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    @property
    def space(self) -> str:
        return f"{self.network.switch}-{self.name}"

    def _enter(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.space, "unshare", "-mu", "sh", "-c", ENTER, "enter", *command]

    def _settings(self) -> dict[str, str]:
        return {
            "WINNOW_HOST": self.name,
            "WINNOW_HOSTS": str(self.network.hosts_file),
            "WINNOW_PYTHON": self.python.removeprefix("/mnt/").removesuffix("/bin/python"),
            "WINNOW_PREFIX": sys.prefix,
            "WINNOW_SHARED": str(self.network.shared),
            "WINNOW_OWN": str(self.own),
            "WINNOW_HIDDEN": str(CHECKOUT),
        }


class Submitter(Host):
    """The host that has the checkout, at its place, with its own interpreter."""

    def _settings(self) -> dict[str, str]:
        return {**super()._settings(), "WINNOW_HIDDEN": ""}


class Node(Host):
    """What stands in for a host where namespaces are not permitted: processes at an address of the loopback."""

    def __init__(self, network: Network, name: str, address: str, python: str, own: Path) -> None:
        super().__init__(network, name, address, python, own)
        self.python, self.shared, self.place = sys.executable, str(network.shared), str(own)
        self.mark = f"{network.switch}-{name}"

    def _enter(self, command: list[str]) -> list[str]:
        return command

    def _settings(self) -> dict[str, str]:
        return {"HOST_OF_THE_TEST": self.mark}

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("HOST_OF_THE_TEST") == self.mark:
                    found.append(process)
        return found

    def cut(self) -> None:
        self._signal(signal.SIGSTOP)

    def mend(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(number)


class Network:
    """A switch, in a namespace of its own, so that nothing of this machine's network is touched; hosts at its ports."""

    def __init__(self, root: Path) -> None:
        self.why_not = permitted()
        self.root, self.switch = root, f"winnow-{os.getpid()}"
        self.shared, self.hosts_file = root / "shared", root / "hosts"
        self.shared.mkdir(parents=True)
        self.hosts_file.write_text("127.0.0.1 localhost\n")
        self.hosts: list[Host] = []
        if not self.why_not:
            _ip("netns", "add", self.switch)
            _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self.switch, "link", "set", "switch", "up")

    def host(self, name: str, python: str = "", kind: type[Host] = Host) -> Host:
        """A host with an address, whose interpreter lies below /mnt at ``python``."""
        number = len(self.hosts) + 1
        address = f"127.77.0.{number}" if self.why_not else f"10.77.0.{number}"
        host = (Node if self.why_not else kind)(self, name, address, python or f"{name}/env", self.root / name)
        self.hosts.append(host)
        if not self.why_not:
            _ip("netns", "add", host.space)
            _ip("-n", self.switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host.space)
            _ip("-n", self.switch, "link", "set", name, "master", "switch", "up")
            _ip("-n", host.space, "addr", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host.space, "link", "set", link, "up")
            with self.hosts_file.open("a") as file:
                file.write(f"{address} {name}\n")
        return host

    def end(self) -> None:
        for host in self.hosts:
            host.mend()
            host.remove()
            if not self.why_not:
                _ip("netns", "del", host.space)
        if not self.why_not:
            _ip("netns", "del", self.switch)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
