"""What stands for what, and that a form is measured with the zeros it is said to have."""

from __future__ import annotations

import pytest

from tasks.models.files.checkpoint import save_model
from tasks.models.running.bench import OWN, Bench
from tests.tasks import models_zoo as zoo


@pytest.fixture
def pruned(tmp_path):
    model = zoo.model("llama", hidden_size=32, intermediate_size=64)
    save_model(model.state_dict(), model.config, tmp_path, zoo.prune(model, "2:4"))
    return tmp_path


def test_every_matrix_is_stood_for_by_one_of_its_shape(pruned):
    bench = Bench(pruned, "cpu", 1, 0.1)
    shapes = {linear.shape for linear in bench.linears.values()}
    assert len(bench.shares) == len(shapes) and sum(bench.shares.values()) == len(bench.linears)


def test_random_zeros_are_as_many_as_is_said_also_in_a_model_that_has_zeros_already(pruned):
    bench = Bench(pruned, "cpu", 1, 0.1)
    rows = list(bench.measure([1], [0.5, 0.75], 4, 4, lambda *told: None))
    for row in rows:
        outputs, inputs = bench.linears[row.matrix].shape
        assert row.dense_bytes == 4 * outputs * inputs
        if row.form == "csr":
            assert row.bytes == round((1 - row.sparsity) * outputs * inputs) * 8 + 4 * (outputs + 1)
    assert {row.sparsity for row in rows if row.zeros == OWN} == {0.5}
    assert {row.zeros for row in rows} == {OWN, "unstructured", "block:4", "group:4", "channel"}
