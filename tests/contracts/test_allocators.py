"""What every allocator on the shelf promises: each matrix gets a sparsity, and the total is what was asked for."""

import pytest

from tasks.calibrate.scan import scan
from tasks.methods import build, dump, names
from tasks.models.stream.blocks import ResidentBlocks
from tests.contracts.test_methods_without_torch import SCRIPT
from tests.tasks import models_zoo as zoo

QUICK = {"sensitivity": {"sensitivity": {"levels": [0.4, 0.8], "sequences": 4}}}  # measures every linear at every level
allocators = pytest.mark.parametrize("name", names("allocators"))


def look(architecture="llama", layers=3):
    model = zoo.model(architecture, layers=layers)
    if architecture == "mixtral":
        model.set_experts_implementation("eager")
    return model, scan(ResidentBlocks(model), zoo.batches())


@allocators
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.33, 0.5, 0.7, 0.95])
def test_the_total_is_exact_to_the_weight_and_no_matrix_is_left_out(name, architecture, sparsity):
    _, scanned = look(architecture, layers=2)
    found = build("allocators", QUICK.get(name, name)).allocate(scanned, sparsity)
    assert found.keys() == scanned.shapes.keys() and all(0 <= given < 1 for given in found.values())
    dead = sum(given * scanned.size(linear) for linear, given in found.items())
    assert dead == pytest.approx(sparsity * sum(map(scanned.size, scanned.shapes)), abs=1)


@allocators
def test_looking_changes_no_weight_and_the_same_look_gives_the_same_allocation(name):
    model, scanned = look()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = [build("allocators", QUICK.get(name, name)).allocate(scanned, 0.6) for _ in range(2)]
    assert found[0] == found[1]
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@allocators
def test_an_allocation_comes_back_through_table(name):
    _, scanned = look()
    found = build("allocators", name).allocate(scanned, 0.6)
    assert build("allocators", {"table": {"sparsities": found}}).allocate(scanned, 0.1) == found


@allocators
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("allocators", name)
    assert dump(method).keys() == {name} and build("allocators", dump(method)) == method and method.paper


def test_methods_are_built_and_dumped_without_torch():
    import subprocess
    import sys

    command = [sys.executable, "-c", SCRIPT, "allocators", *names("allocators")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
