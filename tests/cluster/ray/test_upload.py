"""What goes to a cluster of somebody else's is what a job needs, and none of what lies beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.profile import CHECKOUT
from cluster.ray.jobs import Jobs
from cluster.ray.upload import product, staged, told

KEPT = (  # what people keep in a checkout
    ".env",
    "key.pem",
    "weights.safetensors",
    "data/corpus.jsonl",
    "flows/recipes/mine.yaml",
    "tasks/pruners/notes.txt",
    "tasks/.secret.py",
    "tasks/__pycache__/prune.py",
    "tests/test_all.py",
    "tasks/calibrate/solvers/other.so",
)
NEEDED = (
    "pyproject.toml",
    "flows/plan.py",
    "tasks/job.py",
    "tasks/pruners/written_a_minute_ago.py",
    "cluster/ray/arrival.py",
    "dashboards/figures.py",
    "tasks/calibrate/solvers/settling.cpp",
    "tasks/calibrate/solvers/_settling.cpython-311-x86_64-linux-gnu.so",
)


@pytest.fixture
def checkout(tmp_path):
    for name in (*KEPT, *NEEDED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "tasks" / "linked.py").symlink_to(tmp_path / "key.pem")
    return tmp_path


def test_only_the_product_travels_whatever_else_is_kept_in_the_checkout(checkout):
    with staged(checkout) as folder:
        travels = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert sorted(travels) == sorted(NEEDED)
    assert not folder.exists() and told(checkout) == f"{len(NEEDED)} files, 0.0 MB"


def test_a_job_can_begin_from_an_upload_of_this_checkout_alone(tmp_path):
    with staged(CHECKOUT) as folder:
        assert told(folder) == told(CHECKOUT) and len(product(CHECKOUT)) > 200
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        code = "import tasks.job, tasks.pruners.sparsegpt; print(tasks.job.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(folder / "tasks" / "job.py")


def test_elsewhere_the_interpreter_is_the_clusters_own_and_here_it_is_this_one(checkout):
    assert Jobs("http://there:1")._command(["python", "-m", "tasks.job"]) == "exec python -m tasks.job"
    assert Jobs("http://here:1", local=True)._command(["python", "-V"]) == f"exec {sys.executable} -V"
    with Jobs("http://there:1", checkout=checkout)._runtime_environment({}) as environment:
        assert environment["env_vars"] == {"WINNOW_UPLOAD": told(checkout)} and str(checkout) not in str(environment)
