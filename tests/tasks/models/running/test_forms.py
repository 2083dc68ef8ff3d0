"""Every form multiplies as the dense matrix with its zeros does, and takes fewer bytes the sparser it is."""

from __future__ import annotations

import pytest
import torch

from tasks.formats.pattern import parse_pattern
from tasks.models.running.forms import FEWEST, dense, form_for, gathered, sliced, timed

PATTERNS = ["unstructured", "2:4", "block:4", "group:8", "channel", "neuron"]


def masked(pattern: str, sparsity: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(32, 48, generator=generator)
    return matrix * parse_pattern(pattern).keep(torch.rand(32, 48, generator=generator), sparsity)


@pytest.mark.parametrize("columns", [1, 5, 16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_form_gives_what_the_dense_matrix_gives(pattern, columns):
    matrix, x = masked(pattern, 0.5), torch.randn(48, columns, generator=torch.Generator().manual_seed(1))
    _, make = form_for(parse_pattern(pattern))
    assert torch.allclose(make(matrix).multiply(x), matrix @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4", "group:8", "channel"])
def test_sparser_is_smaller_and_the_dense_form_never_is(pattern):
    _, make = form_for(parse_pattern(pattern))
    sizes = [make(masked(pattern, sparsity)).bytes for sparsity in (0.25, 0.5, 0.75)]
    assert sizes[0] > sizes[1] > sizes[2] and dense(masked(pattern, 0.75)).bytes == 32 * 48 * 4


def test_bytes_by_hand():
    matrix = torch.zeros(4, 8)
    matrix[:2, :3] = matrix[2:, 1:4] = 1.0
    name, make = form_for(parse_pattern("unstructured"))
    assert name == "csr" and make(matrix).bytes == 12 * (4 + 4) + 5 * 4
    assert gathered(matrix, 2).bytes == 12 * 4 + 6 * 4
    assert sliced(matrix).bytes == 4 * 4 * 4  # columns 0 to 3 live
    name, make = form_for(parse_pattern("block:2"))
    assert name == "bsr2" and make(matrix).bytes == 4 * 4 * 4 + 4 * 4 + 3 * 4  # two blocks in each row of them


def test_groups_of_unlike_width_and_without_any_weight_are_right_too():
    matrix = torch.zeros(6, 5)
    matrix[:2, 1], matrix[2:4, :] = 2.0, 3.0
    x = torch.arange(10.0).view(5, 2)
    assert torch.equal(gathered(matrix, 2).multiply(x), matrix @ x)


def test_a_form_names_what_a_pattern_allows_and_2_of_4_needs_a_gpu():
    names = [form_for(parse_pattern(pattern))[0] for pattern in PATTERNS]
    assert names == ["csr", "semi_structured" if torch.cuda.is_available() else "csr", "bsr4", "gather8", "sliced", "csr"]


def test_runs_are_timed_in_turn_and_the_first_round_and_what_takes_too_long_is_left_out():
    seen: list[str] = []
    times = timed({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 4, 60.0, "cpu")
    assert seen == ["a", "b"] * 5 and [len(found) for found in times.values()] == [4, 4]
    times = timed({"a": lambda: None}, 1000, 0.0, "cpu")
    assert len(times["a"]) == FEWEST
