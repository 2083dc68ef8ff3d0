"""Health checks of the services a profile names: each is asked once, with a deadline, before any work starts.

Their clients retry for long (MLflow's for four minutes, S3's for three) and then raise errors about their internals. Here a
wrong address is reported within seconds, in one line, and later failures are reduced to one line too.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cluster.profile import SQLITE, Profile, private_file
from cluster.ray.follower import get_json
from cluster.ray.jobs import Jobs

DEADLINE = 5.0  # seconds a service may take to answer at all
ROOM = 4 << 20  # bytes that a database must be able to grow by
S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
FOREIGN = re.compile(r"API request to endpoint (\S+) failed with error code (\d+)")  # what answers is no MLflow
CLIENTS = ("mlflow", "requests", "urllib3", "sqlalchemy", "sqlite3")
Found = TypeVar("Found")


def check_servers(profile: Profile, tracking: str, jobs: bool) -> None:
    """Raise an OSError of one line when MLflow, or with ``jobs`` the Ray or Prefect that a profile names, is not there."""
    check_tracking(tracking)
    if jobs and profile.ray.address:
        known = Jobs.at(profile.ray.address)
        if get_json(f"{known.address}/api/version", known.headers, DEADLINE) is None:
            raise ConnectionError(f"ray.address {known.address} is no dashboard of Ray: it knows no /api/version")
    if jobs and (api := profile.prefect.api_url):
        check_prefect(api)


def check_prefect(api: str) -> None:
    """The same for a Prefect server."""
    if _status("prefect.api_url", api, f"{api.rstrip('/')}/health") == 404:
        raise ConnectionError(f"prefect.api_url {api} is no API of Prefect: it knows no /health; most end with /api")


def check_tracking(uri: str, what: str = "mlflow.tracking_uri") -> None:
    """The same for an MLflow server, or the database MLflow writes to; ``what`` named it."""
    if uri.startswith(SQLITE):
        _check_database(Path(uri.removeprefix(SQLITE)))
    elif uri.startswith(("http://", "https://")):
        _status(what, shown(uri), f"{uri.rstrip('/')}/health")
    elif host := urlsplit(uri).hostname:
        try:
            socket.create_connection((host, urlsplit(uri).port or 5432), DEADLINE).close()
        except OSError as error:
            raise ConnectionError(f"{what} {shown(uri)} does not answer: {error}") from None


def check_s3(*places: str) -> None:
    """The same for the S3 endpoint that the environment names, where one of the places is on S3."""
    endpoint = next(filter(None, map(os.environ.get, S3_ENDPOINTS)), None)
    if endpoint and any(place.startswith("s3://") for place in places):
        _status(next(name for name in S3_ENDPOINTS if os.environ.get(name)), endpoint, endpoint)


def _status(what: str, shown: str, url: str) -> int:
    """The status of a server's answer, whatever it is: an error of its own is an answer too."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error) or type(error).__name__).split())
        raise ConnectionError(f"{what} {shown} does not answer: {reason}; start it, or mend the address") from None


def _check_database(path: Path) -> None:
    """That a SQLite file is one, and that it may grow: MLflow would try for a minute, and then show its SQL. A new one, and
    what lies beside it, are for this user alone; MLflow would make them for everybody."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            with path.open("r+b") as file:
                start = file.read(16)
            if start and not start.startswith(b"SQLite format 3"):
                raise OSError("it is no SQLite database")
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
        private_file(path)
        (path.parent / "mlflow-artifacts").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OSError(f"MLflow cannot write its database {path}: {error.strerror or error}") from None


def artifact_location(uri: str) -> str | None:
    """Beside a database file; MLflow would take the directory the user happens to stand in. A server has its own."""
    file = uri.removeprefix("sqlite:///")
    return None if file == uri else (Path(file).absolute().parent / "mlflow-artifacts").as_uri()


@contextmanager
def plainly(uri: str) -> Iterator[None]:
    """What MLflow's client and those below it raise becomes a ConnectionError of one line."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        what = (str(_beneath(error)).strip() or type(error).__name__).splitlines()[0]
        if "Max retries exceeded" in what:  # whatever was asked, and by which classes
            what = "it does not answer"
        elif answer := FOREIGN.match(what):
            what = f"it answers {answer[2]} where an MLflow has {answer[1]}; mend the address"
        raise ConnectionError(f"MLflow at {shown(uri)}: {what}") from error


def _beneath(error: BaseException) -> BaseException:
    """The database's own error, where it is one: those around it begin with advice to programmers."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(origin := getattr(below, "orig", None), Exception):  # as SQLAlchemy names it
            return origin
        below = below.__cause__ or below.__context__
    return error


class Plain:
    """An MLflow client whose every call fails :func:`plainly`."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with plainly(self._uri):
                return method(*args, **kwargs)

        return call


def if_there(call: Callable[[], Found]) -> Found | None:
    """What a call of such a client finds; None where MLflow has no such thing, as of a run that ``mlflow gc`` removed."""
    try:
        return call()
    except ConnectionError as error:
        if getattr(error.__cause__, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def shown(uri: str) -> str:
    """Without the password."""
    return re.sub(r"//[^/@]*@", "//", uri)
