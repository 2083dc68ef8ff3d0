"""Servers that all tests of this folder look at in a browser: an MLflow with its dashboard, and a home where ``winnow up``
stands with deployments. Starting them takes longer than most that is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.servers.services import Services
from tests.browser import CHROMIUM, DRIVER, Browser
from tests.dashboards.told import Teller
from tests.pipeline import Home, made_home, pretrain, prune
from tests.pipeline.test_standing import Ui


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


@pytest.fixture(scope="package")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home that is up, with the deployment of a recipe that is done in moments."""
    with made_home(tmp_path_factory, "browser") as home:
        recipe = home.recipe("tiny", pretrain("dense", 10), prune(), evaluate={"size": {}})
        home.directory.mkdir(parents=True)
        deploy(home, [{"recipe": str(recipe), "profile": str(home.profile), "schedule": "0 3 29 2 *"}])
        home.winnow("up")
        yield home


@pytest.fixture(scope="package")
def ui(standing: Home) -> Ui:
    return Ui(Services(standing.directory).environment())


@pytest.fixture(scope="package")
def browser(standing: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A window that is logged in to its Prefect."""
    server = Services(standing.directory).server("prefect")
    browser = Browser(server.url.removesuffix("/api"), server.token, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def deploy(home: Home, deployments: list[dict[str, Any]]) -> None:
    """What the home's file lists."""
    listing = {"deployments": deployments, "promote": str(home.profile)}
    (home.directory / "deployments.yaml").write_text(yaml.safe_dump(listing))
