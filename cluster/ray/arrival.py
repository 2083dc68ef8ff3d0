"""The first thing a job does on a cluster of somebody else's: see that what computes there is what its submitter has.

``python -m cluster.ray.arrival [MODULE]`` runs the module if so, and says in one line what differs if not. Standard library
only: a cluster may lack all else. Each node that makes an artifact is asked again, since it may differ.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version

from cluster.ray.events import Failed, print_event

VARIABLE = "WINNOW_VERSIONS"
COMPARED = ("torch", "transformers", "ray", "deepspeed")
OLDEST = (3, 11)
GREETING = "winnow on "


def versions() -> dict[str, str]:
    """What is installed here, without the build (+cpu, +cu128): a cluster has other accelerators than a laptop."""
    found = {}
    for package in COMPARED:
        try:
            found[package] = version(package).partition("+")[0]
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def check_versions() -> None:
    """Refuse an environment that is not the submitter's, whose versions the job was told; a job told none is its own."""
    wanted = json.loads(os.environ.get(VARIABLE, "{}"))
    here = versions()
    odd = [f"{name} {here[name]} (submitted with {wanted[name]})" for name in wanted if here.get(name) != wanted[name]]
    if wanted and sys.version_info < OLDEST:
        odd.insert(0, f"Python {platform.python_version()} (at least {'.'.join(map(str, OLDEST))} is needed)")
    if odd:
        raise ValueError(
            f"the cluster's {sys.executable} on {platform.node()} has {', '.join(odd)}; install infra/requirements.lock "
            "in its image, and start Ray with that environment first in PATH"
        )


def main() -> int:
    print(f"{GREETING}{platform.node()}: {sys.executable}, uploaded {os.environ.get('WINNOW_UPLOAD', 'nothing')}", flush=True)
    try:
        check_versions()
    except ValueError as error:
        print_event(Failed(str(error), final=True))
        return 1
    if len(sys.argv) > 1:
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
