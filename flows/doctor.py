"""What ``winnow doctor`` looks at: versions, servers, accelerators, and pairs of versions known not to work."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "ray",
    "prefect",
    "fastapi",
    "mlflow",
    "compressed-tensors",
    "lm-eval",
    "boto3",
)
BAD_PAIRS = (
    ("prefect", "3.8", "fastapi", (0, 151), "the Prefect 3.8 server does not start with fastapi 0.151 or newer"),
    ("prefect", "3.8", "sqlalchemy", (2, 1), "Prefect 3.8 cannot plan scheduled runs on sqlalchemy 2.1 or newer"),
)


class Finding(NamedTuple):
    check: str
    ok: bool
    text: str


def examine(profile_name: str) -> list[Finding]:
    """Every check, in the order a person would want to read them."""
    return [*_versions(), *_pairs(), *_toolchain(), *_device(), *_servers(), *_profile(profile_name)]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdigit())


def _versions() -> list[Finding]:
    found = [Finding("python", sys.version_info[:2] == (3, 11), sys.version.split()[0])]
    for package in PACKAGES:
        try:
            found.append(Finding(package, True, version(package)))
        except PackageNotFoundError:
            found.append(Finding(package, False, "not installed; run make install"))
    return found


def _pairs() -> list[Finding]:
    found = []
    for first, prefix, second, limit, why in BAD_PAIRS:
        try:
            bad = version(first).startswith(prefix) and _numbers(version(second)) >= limit
        except PackageNotFoundError:
            continue
        text = why if bad else f"{first} {version(first)} with {second} {version(second)}"
        found.append(Finding(f"{first} + {second}", not bad, text))
    return found


def _toolchain() -> list[Finding]:
    compiler = shutil.which("g++")
    built = find_spec("tasks.calibrate.solvers._settling") is not None
    return [
        Finding("C++ compiler", compiler is not None, compiler or "none; DeepSpeed and we build CPU code with it"),
        Finding("compiled sweep", built, "built" if built else "settling.cpp is not built; run make install"),
    ]


def _device() -> list[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    found = [
        Finding("cores", True, f"{len(os.sched_getaffinity(0))} usable"),
        Finding("memory", memory.available > 2 << 30, f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"),
    ]
    if not torch.cuda.is_available():
        return [*found, Finding("accelerator", True, "none; stages run on the CPU")]
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [*found, *(Finding("accelerator", True, name) for name in names)]


def _servers() -> list[Finding]:
    from cluster.servers.services import Services

    status = Services().status()
    if not status:
        return [Finding("servers", True, "none run; winnow run starts its own")]
    return [Finding(kind, health.healthy, f"{health.url} (pid {health.pid})") for kind, health in status.items()]


def _profile(name: str) -> list[Finding]:
    """That it can be read, and each service it names."""
    from cluster.probe import questions
    from cluster.profile import load_profile
    from cluster.tracking import tracking_uri
    from flows.plan import RESOURCED

    try:
        profile = load_profile(name)
        profile.check_stages(RESOURCED)
        profile.check_device()
    except (ValueError, OSError) as error:
        return [Finding(f"profile {name}", False, " ".join(str(error).split()))]
    found = [Finding(f"profile {name}", True, "is understood")]
    for what, ask in questions(profile, tracking_uri(profile.mlflow.tracking_uri)):
        try:
            found.append(Finding(what, True, ask()))
        except (ValueError, OSError, ModuleNotFoundError) as error:
            found.append(Finding(what, False, " ".join(str(error).split())))
    return found
