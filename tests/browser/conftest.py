"""One MLflow with its dashboard, as ``winnow up`` starts them, for all tests that look at them in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.servers.services import Services
from tests.browser import CHROMIUM, DRIVER
from tests.dashboards.told import Teller


@pytest.fixture(scope="package", autouse=True)
def chromium_is_there() -> None:
    missing = [str(program) for program in (CHROMIUM, DRIVER) if not program.exists()]
    assert not missing, f"{', '.join(missing)}: install Debian's packages chromium and chromium-driver"


@pytest.fixture(scope="package")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """MLflow and the dashboard, as winnow up starts them."""
    standing = Services(tmp_path_factory.mktemp("dashboard") / "home")
    standing.start(["mlflow", "dashboard"], mode="up")
    yield standing
    standing.stop()


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was told once is there for all who tell again."""
    return tmp_path_factory.mktemp("told")


@pytest.fixture(scope="module")
def teller(services: Services, made: Path) -> Iterator[Teller]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINNOW_HOME", str(services.home))
        yield Teller(services.server("mlflow").url, made)
