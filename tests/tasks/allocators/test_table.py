"""A table is law: the first key that matches decides, and a key that decides nothing is a mistake."""

import pytest

from tasks.methods import build
from tasks.models.allocation import Scan

SCAN = Scan({"l.0.mlp.up": (4, 4), "l.0.attn.q": (4, 4), "l.1.mlp.up": (4, 4)})


def table(sparsities):
    return build("allocators", {"table": {"sparsities": sparsities}})


def test_the_first_match_decides_and_the_rest_get_the_sparsity_of_the_model():
    found = table({r"\.0\.mlp": 0.2, "mlp": 0.7}).allocate(SCAN, 0.5)
    assert found == {"l.0.mlp.up": 0.2, "l.0.attn.q": 0.5, "l.1.mlp.up": 0.7}


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"mlp": 1.0}, "the sparsity of 'mlp' must be in \\[0, 1\\), got 1"),
        ({"mlp(": 0.5}, "'mlp\\(' is no regular expression"),
    ],
)
def test_a_bad_table_is_refused_when_it_is_read(sparsities, message):
    with pytest.raises(ValueError, match=message):
        table(sparsities)


def test_a_key_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="'nosuch' matches no linear first; linears are named like l.0.mlp.up"):
        table({"nosuch": 0.5}).allocate(SCAN, 0.5)
