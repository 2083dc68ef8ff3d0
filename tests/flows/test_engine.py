"""A run whose deployment is removed before it begins."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow  # a server of Prefect's own


def test_a_run_whose_deployment_was_removed_before_it_began_is_skipped():
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Pending
    from prefect.testing.utilities import prefect_test_harness

    from flows.engine import removed

    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        id = client.create_deployment(client.create_flow(flow(lambda: None, name="winnow")), "nightly", tags=["winnow"])
        run = client.create_flow_run_from_deployment(id).id
        assert not removed(client, run) and client.read_flow_run(run).state.is_scheduled()
        client.set_flow_run_state(run, Pending(), force=True)  # whoever serves it took it
        client.delete_deployment(id)
        assert removed(client, run)
        state = client.read_flow_run(run).state
        assert (state.name, state.is_cancelled(), state.message) == ("Skipped", True, "skipped: its deployment was removed")
