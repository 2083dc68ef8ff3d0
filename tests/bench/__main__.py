"""``python -m tests.bench``: every bench_*.py of this folder, as one table of what was measured against its bar.

A bar that is missed is a finding, not an error: the exit code is 0 unless a bench crashes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.options import console
from tests.bench.measured import Measured

BENCHES = {path.stem.removeprefix("bench_"): path.stem for path in sorted(Path(__file__).parent.glob("bench_*.py"))}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Speed and memory against their bars.")
    parser.add_argument("--only", choices=BENCHES, metavar="NAME", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(arguments)
    lines, crashed = measure([options.only] if options.only else list(BENCHES))
    if options.json:
        rows = [{**dataclasses.asdict(line), "meets": line.meets} for line in lines]
        print(json.dumps({"machine": machine(), "measured": rows, "crashed": crashed}))
    else:
        show(lines)
    return 1 if crashed else 0


def measure(names: list[str]) -> tuple[list[Measured], list[str]]:
    """Lines of the benches that ran, names of those that crashed; one that crashes does not stop the others."""
    lines, crashed, progress = [], [], Console(stderr=True)
    for name in names:
        try:
            with progress.status(name):
                lines += importlib.import_module(f"tests.bench.{BENCHES[name]}").measure()
        except Exception:
            traceback.print_exc()
            crashed.append(name)
    return lines, crashed


def machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} over the last minute"


def show(lines: list[Measured]) -> None:
    table = Table(title=machine())
    for title in ("bench", "measured", "bar", "meets", "compared"):
        numbers = title in ("measured", "bar")
        table.add_column(title, overflow="fold", no_wrap=title != "compared", justify="right" if numbers else "left")
    for line in lines:
        digits = ".3f" if line.unit == "x" else ".1f"
        bar = "" if line.bar is None else f"{line.bar:g} {line.unit}"
        meets = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}[line.meets]
        table.add_row(line.name, f"{line.value:{digits}} {line.unit}", bar, meets, line.compared)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
