"""Half of a symmetric matrix's products say what all of them do."""

import pytest
import torch

from tasks.calibrate.solvers.products import doubled, sum_of_squares


@pytest.mark.parametrize("width", [1, 128, 300, 1100])
def test_the_squares_of_changes_are_those_of_the_whole_matrix(width):
    generator = torch.Generator().manual_seed(0)
    input_TI = torch.randn(50, width, generator=generator, dtype=torch.float64)
    change_OI = torch.randn(7, width, generator=generator, dtype=torch.float64)
    symmetric_II = input_TI.T @ input_TI
    kept_II = symmetric_II.clone()
    assert sum_of_squares(change_OI, doubled(symmetric_II)) == pytest.approx(float((change_OI @ input_TI.T).square().sum()))
    assert torch.equal(symmetric_II, kept_II), "what it is made from stays as it is"
