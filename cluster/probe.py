"""What ``winnow doctor`` asks of the services a profile names: not only whether they answer, but whether they let us in.

A run asks less (``reach.py``), because it must begin within seconds. Here every question has a deadline and is asked with the
secret a run would use; an answer is a line, and whatever keeps a run from working is an OSError or ValueError of one line.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from cluster.profile import Profile
from cluster.ray import arrival
from cluster.ray.events import Failed, parse_event
from cluster.ray.follower import get_json
from cluster.ray.jobs import Jobs
from cluster.reach import DEADLINE, check_s3, check_servers, check_tracking
from cluster.store.url import open_store

JOB_SECONDS = 120.0  # a cluster that makes its environment for the first time


def questions(profile: Profile, tracking: str) -> list[tuple[str, Callable[[], str]]]:
    """Each service of the profile's own, and how to ask it."""
    asked: list[tuple[str, Callable[[], str]]] = []
    if address := profile.ray.address:
        asked.append(("ray.address", lambda: ask_ray(address)))
    if profile.prefect.api_url:
        asked.append(("prefect.api_url", lambda: ask_prefect(profile)))
    if profile.mlflow.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
        asked.append(("mlflow.tracking_uri", lambda: ask_tracking(tracking)))
    return [*asked, ("store", lambda: ask_store(profile))]


def ask_ray(address: str) -> str:
    """The dashboard knows our token and runs the Ray we have, and a job finds there what its submitter has."""
    jobs = Jobs.at(address)
    there = get_json(f"{jobs.address}/api/version", jobs.headers, DEADLINE)
    if there is None:
        raise ConnectionError(f"ray.address {jobs.address} is no dashboard of Ray: it knows no /api/version")
    known = get_json(f"{jobs.address}/nodes?view=summary", jobs.headers, DEADLINE) or {}
    get_json(f"{jobs.address}/api/jobs/", jobs.headers, DEADLINE)  # what a token is asked for
    if there["ray_version"] != version("ray"):
        raise ValueError(f"ray.address {jobs.address} runs Ray {there['ray_version']}, this checkout has {version('ray')}")
    states = [node.get("raylet", {}).get("state") for node in known.get("data", {}).get("summary", [])]
    secret = "with" if jobs.headers else "without"
    return (
        f"{jobs.address}: Ray {there['ray_version']}, {states.count('ALIVE')} nodes, asked {secret} a token; {_try_job(jobs)}"
    )


def _try_job(jobs: Jobs) -> str:
    """A job that only compares versions: the upload, the cluster's interpreter and what is installed for it."""
    stop, failed = threading.Event(), []

    def line(text: str) -> None:
        if isinstance(event := parse_event(text), Failed):
            failed.append(event.message)

    deadline = threading.Timer(JOB_SECONDS, stop.set)
    deadline.start()
    try:
        wanted = {arrival.VARIABLE: json.dumps(arrival.versions())}
        job = jobs.submit(f"doctor-{time.time_ns()}", ["python", "-m", arrival.__name__], wanted)
        done = jobs.follow(job, line, stop)
    finally:
        deadline.cancel()
    if failed:
        raise ValueError(failed[0])
    if not done.ok:
        last = next(reversed(done.last_lines), "") or done.message
        raise ConnectionError(f"a job on {jobs.address}, waited for {JOB_SECONDS:.0f} s at most, is {done.status}: {last}")
    return next((line for line in done.last_lines if line.startswith(arrival.GREETING)), "its job said nothing")


def ask_prefect(profile: Profile) -> str:
    """The API knows our login, and is the Prefect we have."""
    check_servers(profile.model_copy(update={"ray": type(profile.ray)()}), "", jobs=True)
    api = str(profile.prefect.api_url).rstrip("/")
    there = get_json(f"{api}/admin/version", _login("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"), DEADLINE)
    if there != version("prefect"):
        raise ValueError(f"prefect.api_url {api} is Prefect {there}, this checkout has {version('prefect')}")
    return f"{api}: Prefect {there}"


def ask_tracking(uri: str) -> str:
    """The server lists experiments to us, or the database lets us in."""
    check_tracking(uri)
    if uri.startswith(("http://", "https://")):
        login = _login("", "MLFLOW_TRACKING_TOKEN")
        if name := os.environ.get("MLFLOW_TRACKING_USERNAME"):
            login = _basic(f"{name}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}")
        url = uri.rstrip("/")
        if get_json(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", login, DEADLINE) is None:
            raise ConnectionError(f"mlflow.tracking_uri {url} is no tracking server: it knows no experiments")
        return f"{url}: answers"
    if uri.startswith("postgresql"):
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        engine = create_engine(uri, connect_args={"connect_timeout": int(DEADLINE)})
        try:
            engine.connect().close()
        except SQLAlchemyError as error:
            reason = " ".join(str(error).splitlines()[0].split())
            raise ConnectionError(f"mlflow.tracking_uri {engine.url.render_as_string()} lets nobody in: {reason}") from None
        return f"{engine.url.render_as_string()}: lets us in"
    return f"{uri}: can be written"


def ask_store(profile: Profile) -> str:
    check_s3(profile.store)
    open_store(profile.store, Path(profile.scratch) / "cache").writable()
    return f"{profile.store} is writable"


def _login(basic: str, bearer: str) -> dict[str, str]:
    """The header for a secret that the environment holds under one of two names."""
    if secret := os.environ.get(basic):
        return _basic(secret)
    return {"Authorization": f"Bearer {secret}"} if (secret := os.environ.get(bearer)) else {}


def _basic(secret: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"}
