"""A recipe is validated without torch: importing a method file, building it and dumping it touches no torch."""

import subprocess
import sys

import pytest

from tasks.methods import names

SCRIPT = """
import sys, types
class Untouchable(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"torch.{name} was used at import")
sys.modules["torch"] = Untouchable("torch")
from tasks.methods import build, dump, load
for name in sys.argv[2:]:
    fields = load(sys.argv[1], name).model_fields.values()
    if sys.argv[1] != "evaluators" and not any(field.is_required() for field in fields):
        dump(build(sys.argv[1], name))
assert "transformers" not in sys.modules
"""


@pytest.mark.parametrize("shelf", ["pruners", "quantizers", "transforms", "surgeries"])
def test_methods_are_built_and_dumped_without_torch(shelf):
    done = subprocess.run([sys.executable, "-c", SCRIPT, shelf, *names(shelf)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
