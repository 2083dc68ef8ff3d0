"""A lazy module runs once, at its first use, whatever it does to its own names: on every Python that is promised and here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OTHERS = [found for minor in (12, 13) if (found := shutil.which(f"python3.{minor}"))]
PYTHONS = [sys.executable, *(python for python in OTHERS if not subprocess.run([python, "-V"], capture_output=True).returncode)]
MODULE = """
import sys
print("run")
extra, value = 1, 2
delattr(sys.modules[__name__], "extra")  # as torch does
import odd.part
assert sys.modules[__name__].value == 2
def __getattr__(name):
    if name == "made":
        return 3
    raise AttributeError(name)
"""
SCRIPT = """
import sys, threading
from flows.lazy import make_lazy
make_lazy("odd")
import odd
assert odd.__name__ == "odd" and odd.__spec__ and odd.__class__
print("asked")
threads = [threading.Thread(target=lambda: print(odd.value)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert odd.made == 3 and not hasattr(odd, "extra") and odd.part.parent == 2
"""


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: Path(python).name)
def test_it_runs_once_at_its_first_use_and_may_delete_names_of_its_own(python, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "__init__.py").write_text(MODULE)
    (tmp_path / "odd" / "part.py").write_text("import odd\nparent = odd.value\n")
    path = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-c", SCRIPT], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked", "run", *4 * "2"]


def test_what_is_cached_is_told_without_prefect_and_ray() -> None:
    """They take seconds to import."""
    program = (
        "import sys, flows.cli, flows.launch, flows.running, flows.make;"
        "print([name for name in ('prefect', 'ray', 'mlflow', 'transformers', 'matplotlib', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
