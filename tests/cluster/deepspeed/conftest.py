"""What DeepSpeed does to torch in this process ends with the test."""

import pytest

from tasks.machine import own_linear


@pytest.fixture(autouse=True)
def torch_as_it_was():
    with own_linear():
        yield
