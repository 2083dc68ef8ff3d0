"""The Prefect server that a command speaks to: the profile's, else the one of ``winnow up``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

DEADLINE = 10.0  # seconds an answer may take


@contextmanager
def prefect_server(profile: str) -> Iterator[SyncPrefectClient]:
    """A client of the server, which is asked first whether it is there. This process, and what it starts, use it too."""
    from cluster.profile import load_profile
    from cluster.reach import check_prefect
    from cluster.servers.services import Services

    services = Services()
    if api := load_profile(profile).prefect.api_url:
        check_prefect(api)
        os.environ["PREFECT_API_URL"] = api
    elif (health := services.status().get("prefect")) is None or not health.healthy:
        trouble = (
            f"the Prefect server of this home does not answer; see {health.log}, and" if health else "no Prefect runs here:"
        )
        raise ValueError(f"{trouble} start it with winnow up, or name prefect.api_url in the profile")
    else:
        os.environ.update(services.environment())
    from prefect.client.orchestration import get_client
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()  # of a process that read other variables before
    with get_client(httpx_settings={"timeout": DEADLINE}, sync_client=True) as client:
        yield client
