"""One thread per process: on shared cores the tiny models of the tests run ten times faster without waiting threads.
Shipped recipes can be read wherever their text lies."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DATA", "/data")  # where recipes on real text say that it lies


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a test, or a library it calls, puts into the environment ends with it: MLflow writes its tracking address there,
    which a command that a later test starts would believe."""
    yield from _restored()


@pytest.fixture(scope="module", autouse=True)
def modules_own_environment() -> Iterator[None]:
    """So does what the fixtures of a module put there."""
    yield from _restored()


def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(before.get("MLFLOW_TRACKING_URI"))


@pytest.fixture(scope="module")
def server():
    """The address of a moto server, our S3 in tests, for as long as the module runs."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()
