"""What every allocator on the shelf promises: each matrix gets a sparsity, and the total is what was asked for."""

import pytest

from tasks.methods import build, dump, names
from tasks.models.allocation import Scan

MODEL = Scan({"q": (64, 64), "k": (16, 64), "up": (172, 64), "down": (64, 172), "experts": (4, 24, 64)})
allocators = pytest.mark.parametrize("name", names("allocators"))


@allocators
@pytest.mark.parametrize("overall", [0, 0.1, 0.33, 0.5, 0.7, 0.95])
def test_the_total_is_exact_and_no_matrix_is_left_out(name, overall):
    found = build("allocators", name).allocate(MODEL, overall)
    assert found.keys() == MODEL.shapes.keys() and all(0 <= sparsity < 1 for sparsity in found.values())
    dead = sum(sparsity * MODEL.size(linear) for linear, sparsity in found.items())
    assert dead == pytest.approx(overall * sum(map(MODEL.size, MODEL.shapes)), abs=1e-6)


@allocators
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = build("allocators", name)
    assert dump(method).keys() == {name} and build("allocators", dump(method)) == method and method.paper
