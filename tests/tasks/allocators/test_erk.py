"""ERK: the densities follow the sum of the sides, and the total is exact."""

import os
import subprocess
import sys

import pytest

from tasks.methods import build
from tasks.models.allocation import Scan

LENET = Scan({"first": (300, 784), "second": (100, 300), "third": (10, 100)})


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.8, [0.8378, 0.5306, 0]), (0.9, [0.9204, 0.7698, 0]), (0.95, [0.9615, 0.8887, 0.0815])],
)
def test_the_figures_of_lenet(sparsity, expected):
    found = build("allocators", "erk").allocate(LENET, sparsity)
    assert list(found.values()) == pytest.approx(expected, abs=1e-4)


def test_power_zero_is_uniform():
    found = build("allocators", {"erk": {"power": 0}}).allocate(LENET, 0.7)
    assert found == pytest.approx(build("allocators", "uniform").allocate(LENET, 0.7))


@pytest.mark.slow
def test_two_processes_find_the_same_bits():
    """Ranks and workers allocate each by itself; what a set is walked in, and so a sum of floats, differs between them."""
    shapes = {f"layer.{number}": (300 + 7 * number, 784 - 11 * number) for number in range(40)}
    script = f"from tests.tasks.allocators.test_erk import *; print(build('allocators', 'erk').allocate(Scan({shapes}), 0.7))"
    found = {
        subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "0123"
    }
    assert len(found) == 1
