"""The warm process of a home: has imported what every run needs, and makes a copy of itself for whoever asks.

A copy gets the asker's environment, directory and output, and dies with the asker. Nothing of one request can reach another:
a request is read by a copy, never here. Nothing old is run: what was imported is compared with what lies on the disk for each
request, and after a change this process begins anew. Who asks under an environment that libraries would have read while they
were imported, and it is not this one's, is refused, and starts as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = str(Path(__file__).resolve().parents[2])
FAMILIES = (  # of variables that an interpreter, or a library, may read while it is imported
    *("CUDA", "DEEPSPEED", "DS_", "GOMP_", "HF_", "HOME", "HUGGINGFACE", "KMP_", "LANG", "LC_", "LD_", "MALLOC_", "NCCL_"),
    *("PYTHON", "PYTORCH", "ROCR_", "SSL_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TZ", "VIRTUAL_ENV", "XDG_", "XLA_"),
)
NOT_THEIRS = ("MALLOC_ARENA_MAX", "PYTHONUNBUFFERED", "PYTHONPATH", "PYTHONBREAKPOINT")  # a copy sets, or is asked for, these
ASSUMED = {"DS_ACCELERATOR": "cpu"}  # what has an accelerator is not asked for here
SOCKET = "warm.sock"
WARM = (  # what the flow of a run, the driver of its job and the work of its stages import
    *("torch", "torch.distributed", "deepspeed", "cluster.deepspeed.engine", "transformers", "transformers.modeling_utils"),
    *("transformers.models.auto.modeling_auto", "tasks.job", "tasks.train.training", "tasks.calibrate.calibration"),
    *("tasks.evaluate", "ray", "mlflow", "dashboards.claims", "dashboards.static", "flows.engine"),
)
PR_SET_PDEATHSIG = 1  # prctl.h


class Warm:
    """The listening side. ``since`` is when it was begun, in nanoseconds: what changed later on the disk is another thing."""

    def __init__(self, path: Path, modules: list[str], since: int) -> None:
        self.path, self.modules, self.since = path, modules, since
        self.environment = dict(os.environ)

    def serve(self) -> Any:
        """Answers until it is ended. Returns in copies alone, with what they are to do."""
        self.path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(str(self.path))
            os.chmod(self.path, 0o600)
            door.listen(64)  # who comes before all is imported waits for it
            for module in self.modules:
                importlib.import_module(module)
            gc.collect()
            gc.freeze()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
            threads = len(os.listdir("/proc/self/task"))
            print(f"warm after {(time.time_ns() - self.since) / 1e9:.1f} s, {threads} threads", flush=True)
            files = imported()
            while True:
                line, _ = door.accept()
                if changed := next((file for file in files if newer(file, self.since)), None):
                    print(f"{changed} has changed: beginning anew", flush=True)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.execv(sys.executable, command(self.path, self.modules))
                if os.fork() == 0:
                    door.close()
                    return Guardian(line, self.environment).work()
                line.close()


class Guardian:
    """Reads one request, has a copy do it, and sees that it ends when the asker does."""

    def __init__(self, line: socket.socket, environment: Mapping[str, str]) -> None:
        self.line, self.environment = line, environment

    def work(self) -> Any:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        size, descriptors, _, _ = socket.recv_fds(self.line, 8, 3)
        if not size:  # who asked has gone
            os._exit(0)
        request = json.loads(self._read(int.from_bytes(size, "big")))
        if refusal := unlike(self.environment, request["environment"]):
            print(
                f"{request.get('module') or request.get('call')} starts by itself: {refusal} is not what it is here", flush=True
            )
            self._leave({"refused": refusal})
        tell(self.line, {"began": True})  # before there is anybody who may be done
        if (child := os.fork()) == 0:
            return self._become(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._watch(child)

    def _become(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """From here on this process is the asker's."""
        end_with_parent()
        os.setpgid(0, 0)
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        time.tzset()
        gc.unfreeze()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # copies must not draw the same numbers
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return {**request, "line": self.line}

    def _watch(self, child: int) -> None:
        """Until the copy ends, or the asker does."""
        ended = os.pidfd_open(child)
        poll = select.poll()
        poll.register(self.line, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.line.fileno() in ready:
                try:
                    numbers = self.line.recv(64)
                except OSError:
                    numbers = b""
                for number in numbers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, number)
                if not numbers:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    os._exit(0)
            if ended in ready:
                _, status = os.waitpid(child, 0)
                self._leave({"status": status})

    def _read(self, size: int) -> bytes:
        told = bytearray()
        while len(told) < size:
            piece = self.line.recv(size - len(told))
            if not piece:
                os._exit(0)
            told += piece
        return bytes(told)

    def _leave(self, told: dict[str, Any]) -> None:
        tell(self.line, told)
        os._exit(0)


def tell(line: socket.socket, told: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who asked has gone
        line.sendall(json.dumps(told).encode() + b"\n")


def unlike(mine: Mapping[str, str], other: Mapping[str, str]) -> str:
    """The first variable that makes what was imported here unfit there; empty if none does."""
    for name in sorted(mine.keys() | other.keys()):
        if name.startswith(FAMILIES) and name not in NOT_THEIRS and mine.get(name) != other.get(name, ASSUMED.get(name)):
            return name
    return "" if places(mine) == places(other) else "PYTHONPATH"


def places(environment: Mapping[str, str]) -> list[str]:
    """Where else modules are looked for than in the checkout, which both have."""
    return [place for place in environment.get("PYTHONPATH", "").split(":") if place not in ("", CHECKOUT)]


def imported() -> list[str]:
    """The files of every module here, and the folders of ours: a method is a file on a shelf."""
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    files = {file for file in files if os.path.isabs(file)}  # torch has modules of no file that say they had one
    return sorted(files | {os.path.dirname(file) for file in files if file.startswith(CHECKOUT + os.sep)})


def newer(file: str, since: int) -> bool:
    """By the time of the last change of any kind: a copied file may have an old time of its own."""
    try:
        return os.stat(file).st_ctime_ns > since
    except OSError:
        return True


def end_with_parent() -> None:
    """From now on this process is killed when the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def command(path: Path, modules: Sequence[str] = WARM) -> list[str]:
    return [sys.executable, "-m", "cluster.warm.copying", str(path), str(time.time_ns()), *modules]


def perform(request: dict[str, Any]) -> None:
    """The copy's own work."""
    if module := request.get("module"):
        request["line"].close()
        sys.argv = [module]
        warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    name, _, function = request["call"].partition(":")
    try:
        value = getattr(importlib.import_module(name), function)(*request["arguments"])
        tell(request["line"], {"value": value})
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    perform(Warm(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2])).serve())
