"""``python -m tests.zoo [NAMES] [--jobs N] [--page FILE]``: every member through every stage, judged, as one table.

The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from flows.options import console
from tests.zoo.keeper import QUIET, Row, log_to, open_zoo, treat
from tests.zoo.table import failures, page, show


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.update(QUIET)
    with _root(options.keep) as root:
        rows = run(root, options.names, options.jobs)
    console.print(show(rows))
    for line in failures(rows):
        console.print(line, style="red", soft_wrap=True, highlight=False, markup=False)
    if options.page:
        options.page.parent.mkdir(exist_ok=True)
        options.page.write_text(page(rows))
    return 1 if any(row.failed for row in rows) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    from tests.zoo.members import MEMBERS

    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.partition(": ")[2].strip())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(MEMBERS)}; without any, all")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="members at once; default: the cores")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table as Markdown too")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave sources, store and exports in this directory")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in MEMBERS]:
        parser.error(f"no member {unknown[0]!r}; choose some of {', '.join(MEMBERS)}")
    options.names = options.names or list(MEMBERS)
    return options


@contextmanager
def _root(keep: Path | None) -> Iterator[Path]:
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="winnow-zoo-") as directory:
        yield Path(directory)


def run(root: Path, names: Sequence[str], jobs: int) -> list[Row]:
    """The rows of the members, several treated at once, each judged in a fresh process of its own."""
    progress = Console(stderr=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), log_to, (root,)) as pool:
        pool.submit(open_zoo, root).result()
        pending = [pool.submit(treat, root, [name]) for name in names]
        rows: list[Row] = []
        for future in as_completed(pending):
            (row,) = future.result()
            rows.append(row)
            outcome = "[red]FAILED[/]" if row.failed else "[green]ok[/]"
            progress.print(f"{len(rows)}/{len(names)} {row.name} {outcome} {row.seconds:.1f} s", highlight=False)
    return sorted(rows, key=lambda row: names.index(row.name))


if __name__ == "__main__":
    sys.exit(main())
