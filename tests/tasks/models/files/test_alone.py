"""compressed-tensors is called by one process: others of its group are not waited for, and no bar is drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RANK = """
import os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
done = Path(sys.argv[1]) / "done"
if os.environ["RANK"] == "0":
    from tasks.models.files.checkpoint import load_model
    from tests.tasks.models.files.test_schemes import exported
    model, _, export, _ = exported(done.parent, scheme="W8A8")
    load_model(export)(torch.arange(3, 19)[None])
    done.touch()
while not done.exists():
    time.sleep(0.05)
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_under_torchrun_one_rank_packs_reads_back_and_measures_while_the_other_does_something_else(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        tmp_path / "rank.py",
        tmp_path,
    ]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[4])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "it/s]" not in ended.stderr and "?it" not in ended.stderr
