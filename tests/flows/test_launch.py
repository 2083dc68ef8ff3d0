"""Two terminals, one recipe: what one run is making the other waits for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_runs_of_the_same_recipe_at_the_same_time_make_everything_once(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {
        "name": "twice",
        "description": "one small dense model",
        "model": {"architecture": {"model_type": "llama", "num_key_value_heads": 2, "max_position_embeddings": 64, **sizes}},
        "stages": [
            {"prepare": {"corpus": {"stdlib": {"only": ["email", "json", "asyncio"]}}, "tokenizer": {"train": 300}}},
            {"pretrain": {"method": "dense", "tokens": 2048, "length": 32, "batch": 8}},
        ],
    }
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "flows.cli", "run", str(tmp_path / "twice.yaml"), "--here"]
    environment = {**os.environ, "WINNOW_HOME": str(tmp_path / "home"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    told = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert sum("metrics" in text or "loss" in text for text in told) == 1, told     # one of them trained
