"""What is listed of a server's deployments, and how often it is asked for that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows import listing

pytestmark = pytest.mark.slow  # a server of Prefect's own

BEGUN = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Three deployments: ``often`` ran three times after ``once`` did, ``never`` is only scheduled to."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Failed, Scheduled
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as client:
        ids = {
            name: client.create_deployment(client.create_flow(flow(lambda: None, name="winnow")), name, tags=["winnow"])
            for name in ("often", "once", "never")
        }
        runs = [("once", Failed()), ("often", Completed()), ("often", Completed()), ("often", Failed()), ("never", Scheduled())]
        for hour, (name, state) in enumerate(runs):
            run = client.create_flow_run_from_deployment(ids[name], name=f"{name}-{hour}")
            client.set_flow_run_state(run.id, Scheduled(scheduled_time=BEGUN + timedelta(hours=hour)), force=True)
            client.set_flow_run_state(run.id, state, force=True)
        yield client


@pytest.mark.parametrize(("page", "asked"), [(200, 1), (2, 2)])
def test_one_question_tells_the_last_runs_of_all(server, page, asked, monkeypatch):
    """Where an answer has two runs, those of ``often`` fill the first, and the others are asked for once more."""
    questions, read = [], server.read_flow_runs
    monkeypatch.setattr(server, "read_flow_runs", lambda **which: questions.append(which) or read(**which))
    monkeypatch.setattr(listing, "PAGE", page)
    last = {row["name"]: row["last_run"] for row in listing.listing(server)}
    assert {name: run and (run["name"], run["state"]) for name, run in last.items()} == {
        "never": None,
        "often": ("often-3", "failed"),
        "once": ("once-0", "failed"),
    }
    assert len(questions) == asked
