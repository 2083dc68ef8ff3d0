"""``python tests/zoo/elsewhere HOME...``: judge what was exported of some members; one line of JSON for each.

This folder knows transformers, safetensors and nothing of Winnow: what holds here holds for everybody else's programs.
Each check gives the reason why it does not hold, or an empty string.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from case import Case
from files import bytes_kept, companions_kept, files_named
from models import groups_hold, loads_strictly, logits_equal, perplexity_equal, ties_kept
from reference import masks_equal
from transformers.utils import logging

CHECKS = {
    "load": loads_strictly,
    "names": files_named,
    "bytes": bytes_kept,
    "companions": companions_kept,
    "ties": ties_kept,
    "groups": groups_hold,
    "logits": logits_equal,
    "perplexity": perplexity_equal,
}
OURS = ("tasks", "flows", "cluster", "dashboards", "tests")


def judge(case: Case) -> dict[str, dict[str, str]]:
    """Per check and export, why it does not hold."""
    found = {name: {export: _reason(check, case, export) for export in case.exports} for name, check in CHECKS.items()}
    return {**found, "masks": {name: _reason(masks_equal, case, name) for name in case.masked}}


def _reason(check, case: Case, export: str) -> str:
    try:
        return check(case, export)
    except Exception as error:  # of one check of one export: it is told in the table
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for home in sys.argv[1:]:
        print(json.dumps({"home": home, "found": judge(Case(Path(home)))}), flush=True)
    assert not [name for name in sys.modules if name.partition(".")[0] in OURS], "this process knows Winnow"


if __name__ == "__main__":
    main()
