"""The compiled loops of ``settling.cpp``: as the installation built them, or, on a machine that they do not fit, built once.

A job on somebody else's cluster runs from an upload, where another Python finds no file of its name, and an older C library
refuses the one that is there. Whoever comes first then compiles it into ``$XDG_CACHE_HOME/winnow`` (``~/.cache/winnow``),
which outlives the upload. The lock falls with its holder: torch's own loader leaves a file that is waited for for ever.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

SOURCE = Path(__file__).with_name("settling.cpp")
COMMAND = ("-O3", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL:
    """The loops, behind ctypes."""
    found = find_spec("tasks.calibrate.solvers._settling")
    if found is not None and found.origin is not None:
        try:
            return ctypes.CDLL(found.origin)
        except OSError as error:
            return ctypes.CDLL(str(built(f" (the uploaded one does not load: {error})")))
    return ctypes.CDLL(str(built()))


def built(why: str = "") -> Path:
    """The library that this machine compiled for itself, now or earlier."""
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "winnow"
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise ValueError(
            f"{SOURCE.name} is not compiled for {platform.node()}, and g++ is not there to do it{why}; install g++"
        )
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    made_of = [SOURCE.read_bytes(), version, " ".join((*COMMAND, platform.machine(), *platform.libc_ver())).encode()]
    target = cached / f"settling-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
    cached.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            fresh = target.with_suffix(f".{os.getpid()}")
            done = subprocess.run(
                [compiler, *COMMAND, str(SOURCE), "-o", str(fresh)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = " ".join(done.stderr.split()[-30:])
                raise ValueError(f"{compiler} on {platform.node()} does not compile {SOURCE.name}: {last}")
            fresh.replace(target)
    return target
