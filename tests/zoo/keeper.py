"""Takes members through their lives, has them judged in a fresh process, and says what came of it, cell by cell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES = ("half", "pruned", "recovered", "quantized")
CHECKS = ("load", "names", "bytes", "companions", "ties", "groups", "logits", "perplexity", "masks")
COLUMNS = (*STAGES, *CHECKS)
JUDGE = Path(__file__).parent / "elsewhere"
# One thread each, as the members are tiny; nothing is looked up anywhere; and no bars between the lines.
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Cell:
    """What came of one stage or check: ``state`` is ok, refused, FAILED, or a dash where there was nothing to do."""

    state: str
    reason: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    cells: dict[str, Cell]
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return any(cell.state == "FAILED" for cell in self.cells.values())


def log_to(root: Path) -> None:
    """What libraries print goes to a file beside the members, so that the table stands alone."""
    log = os.open(root / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())


def open_zoo(root: Path) -> None:
    """Make what all members share."""
    from tests.zoo.life import Zoo

    Zoo(root).open()


def treat(root: Path, names: Sequence[str]) -> list[Row]:
    """Rows of the members of ``names``; one fresh process judges them all."""
    from time import monotonic

    from tests.zoo.life import Life, Zoo, said
    from tests.zoo.members import MEMBERS

    begun, lives, rows = monotonic(), [], []
    for name in names:
        life = Life(Zoo(root), MEMBERS[name])
        try:
            life.run()
            lives.append(life)
        except Exception as error:  # of one member: it is told in the table, and the others go on
            rows.append(Row(name, {"pruned": Cell("FAILED", said(error))}))
    found = judge(root, [life.home for life in lives])
    seconds = (monotonic() - begun) / len(names)
    rows += [
        Row(life.member.name, {**stages(life.member.packs, life.failures, life.refusal), **checks(judged)}, seconds)
        for life, judged in zip(lives, found, strict=True)
    ]
    return sorted(rows, key=lambda row: names.index(row.name))


def judge(root: Path, homes: Sequence[Path]) -> list[dict[str, dict[str, str]]]:
    """Per member, check and export, why it does not hold. The process sees neither this checkout nor its imports."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | QUIET
    command = [sys.executable, str(JUDGE), *map(str, homes)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the judge of {', '.join(home.name for home in homes)} failed:\n{done.stderr}")
    return [json.loads(line)["found"] for line in done.stdout.splitlines() if line.startswith('{"home"')]


def stages(packs: bool, failures: dict[str, str], refusal: str) -> dict[str, Cell]:
    """Whether each stage made its artifact, its evaluation and its export. Quantization of what has no format is to be
    refused before anything runs, or to work."""
    cells = {}
    for name in STAGES:
        own = {id: reason for id, reason in failures.items() if id.partition(".")[0] == name}
        reason = "; ".join(f"{id}: {reason}" for id, reason in own.items() if reason)
        cells[name] = Cell("FAILED" if reason else "-" if own else "ok", reason)
    if refusal:
        wrong = "it has a format; " if packs else "not in one line: " if "\n" in refusal else ""
        cells["quantized"] = Cell("FAILED" if wrong else "refused", wrong + refusal)
    elif not packs and cells["quantized"].state == "FAILED":
        cells["quantized"] = Cell("FAILED", f"the plan does not refuse it; {cells['quantized'].reason}")
    return cells


def checks(found: dict[str, dict[str, str]]) -> dict[str, Cell]:
    cells = {}
    for name in CHECKS:
        exports = found.get(name, {})
        reasons = "; ".join(f"{export}: {reason}" for export, reason in exports.items() if reason)
        cells[name] = Cell("FAILED" if reasons else "ok" if exports else "-", reasons)
    return cells
