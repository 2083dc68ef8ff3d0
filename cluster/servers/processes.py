"""Start processes detached from the terminal, recognise them later, and end them with all their descendants; never others.

A pid alone says nothing after a reboot or a wrap-around, so every record carries the moment the process was created, which is
told by no clock that somebody may set: a step of it would make strangers of all that run.
Ray's descendants rename themselves (which wipes their environment), open sessions of their own and outlive a killed
parent; a family is therefore found three ways (a mark in the environment, the session, the tree), never by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from cluster.store.owners import KERNEL

MARK = "WINNOW_INSTANCE"
TICKS = os.sysconf("SC_CLK_TCK")  # a second


class Process(BaseModel):
    """A process as it can be recognised later, by anyone."""

    model_config = ConfigDict(frozen=True)

    pid: int
    created: str
    """Clock ticks from the boot to its creation, ``@``, which boot."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises psutil.NoSuchProcess where there is none."""
        try:
            status = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            raise psutil.NoSuchProcess(pid) from None
        ticks = status.rpartition(b")")[2].split()[19]  # proc(5): starttime; the name before it may hold anything
        return cls(pid=pid, created=f"{int(ticks)}@{KERNEL}")

    @classmethod
    def named(cls, name: str) -> Process | None:
        """From host:pid:created, as runs are labelled; None where it is another host's, of which nothing is known here."""
        host, pid, created = name.rsplit(":", 2)
        return cls(pid=int(pid), created=created) if host == os.uname().nodename else None

    @property
    def name(self) -> str:
        return f"{os.uname().nodename}:{self.pid}:{self.created}"

    @property
    def age(self) -> float:
        """Seconds since it was created in this boot."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(self.created.partition("@")[0]) / TICKS

    def find(self) -> psutil.Process | None:
        """The live process of this record; None if it ended or the pid now belongs to another."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if Process.of(self.pid) == self and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    @property
    def alive(self) -> bool:
        return self.find() is not None


def spawn(command: list[str], environment: dict[str, str], mark: str, log: Path, cwd: Path) -> subprocess.Popen:
    """Start `command` in a session of its own, so that it outlives a killed owner; the last start's log is kept."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            command,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


def last_lines(log: str | Path, count: int = 20) -> str:
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    return "(no log)"


def family(roots: Iterable[Process], marks: Collection[str]) -> list[psutil.Process]:
    """Every live process that descends from `roots` or carries one of `marks`, less this process and its parents."""
    found: dict[int, psutil.Process] = {}
    sessions = set()
    for root in roots:
        if (process := root.find()) is not None:
            found[process.pid] = process
        if process is not None or not psutil.pid_exists(root.pid):  # a process may have written over its environment
            sessions.add(root.pid)
    mine = [process for process in psutil.process_iter() if _readable(process)]
    for process in mine:
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) in marks:
                found[process.pid] = process
                sessions.add(os.getsid(process.pid))
    for process in mine:  # a session whose leader died keeps its number, so it cannot be a stranger's
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions:
                found[process.pid] = process
    for process in list(found.values()):
        with suppress(psutil.Error):
            found.update({child.pid: child for child in process.children(recursive=True)})
    with suppress(psutil.Error):
        for process in [psutil.Process(), *psutil.Process().parents()]:
            found.pop(process.pid, None)
    return [process for process in found.values() if _running(process)]


def end(roots: Sequence[Process], marks: Collection[str], grace: float = 3.0) -> None:
    """Terminate the roots, give the family `grace` seconds, kill the rest, and look again for late births. What Python's fork
    servers among them (Ray's dashboard has one) would remove at an exit of their own is removed."""
    members = family(roots, marks)
    folders = {folder for process in members for folder in _of_fork_server(process)}
    try:
        _end(members, roots, marks, grace)
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _end(members: list[psutil.Process], roots: Sequence[Process], marks: Collection[str], grace: float) -> None:
    for root in roots:
        if (process := root.find()) is not None:
            with suppress(psutil.Error):
                process.terminate()
    _wait(members, grace)
    for _ in range(5):
        members = [process for process in {*members, *family(roots, marks)} if _running(process)]
        if not members:
            return
        for process in members:
            with suppress(psutil.Error):
                process.kill()
        _wait(members, 2.0)
    raise RuntimeError(f"processes {sorted(process.pid for process in members)} survive SIGKILL")


def _of_fork_server(process: psutil.Process) -> Iterator[Path]:
    """The temporary folder of multiprocessing that a process listens in."""
    with suppress(psutil.Error, OSError):
        for connection in process.net_connections("unix"):
            folder = Path(str(connection.laddr)).parent
            if folder.is_absolute() and folder.name.startswith("pymp-"):
                yield folder


def _wait(members: list[psutil.Process], seconds: float) -> None:
    """psutil.wait_procs would wait for zombies that are another parent's to reap."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_running(process) for process in members):
        time.sleep(0.05)


def _running(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _readable(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.uids().real == os.getuid()
    return False
