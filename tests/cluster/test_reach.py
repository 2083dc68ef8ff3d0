"""A service that is not there is told in one line within the deadline, whether it refuses or never says a word."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import sqlalchemy

from cluster import reach
from cluster.profile import Profile
from cluster.reach import Plain, check_s3, check_servers, check_tracking


@pytest.fixture(params=["refused", "silent"])
def nobody(request, monkeypatch) -> str:
    """host:port at which no service answers."""
    monkeypatch.setattr(reach, "DEADLINE", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    if request.param == "refused":
        listener.close()
    yield address
    listener.close()


@pytest.fixture
def stranger() -> str:
    """The URL of a web server that is none of ours."""

    class Unknown(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Unknown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


CHECKS = {
    "mlflow": (lambda at: check_tracking(f"http://{at}"), "mlflow.tracking_uri http://{at} does not answer: "),
    "postgres": (lambda at: check_tracking(f"postgresql://me:hidden@{at}/x"), "mlflow.tracking_uri postgresql://{at}/x does "),
    "ray": (lambda at: check(at, ray={"address": f"http://{at}"}), "http://{at}/api/version does not answer: "),
    "prefect": (lambda at: check(at, prefect={"api_url": f"http://{at}/api"}), "prefect.api_url http://{at}/api does not "),
}


def check(at: str, **fields) -> None:
    check_servers(Profile(**fields), "sqlite:////dev/shm/winnow-test-reach/mlflow.db", jobs=True)


@pytest.mark.parametrize("kind", CHECKS)
def test_a_service_that_does_not_answer_is_named_within_the_deadline(kind, nobody):
    act, expected = CHECKS[kind]
    if kind == "postgres" and reachable(nobody):
        pytest.skip("a database is asked for a connection only")
    begun = time.monotonic()
    with pytest.raises(ConnectionError) as refused:
        act(nobody)
    assert time.monotonic() - begun < 3
    assert str(refused.value).startswith(expected.format(at=nobody)) and "\n" not in str(refused.value)


def reachable(at: str) -> bool:
    host, _, port = at.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_an_s3_endpoint_is_asked_only_where_something_is_on_s3(nobody, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{nobody}")
    check_s3("/a/local/store", "")
    with pytest.raises(ConnectionError, match=f"^AWS_ENDPOINT_URL http://{nobody} does not answer"):
        check_s3("/a/local/store", "s3://bucket/store")


def test_a_server_of_another_kind_is_told_from_one_that_is_away(stranger):
    with pytest.raises(ConnectionError, match="is no dashboard of Ray"):
        check("", ray={"address": stranger})
    with pytest.raises(ConnectionError, match="is no API of Prefect: it knows no /health; most end with /api"):
        check("", prefect={"api_url": stranger})
    check_tracking(stranger)  # any answer: its client says the rest at once


def test_a_database_that_cannot_be_written_is_named_before_mlflow_opens_it(tmp_path):
    (tmp_path / "text.db").write_text("these are no tables at all")
    with pytest.raises(OSError, match=f"MLflow cannot write its database {tmp_path}/text.db: it is no SQLite database"):
        check_tracking(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(OSError, match="MLflow cannot write its database /proc/nosuch/x.db: No such file"):
        check_tracking("sqlite:////proc/nosuch/x.db")
    script = (
        "import resource; from cluster.reach import *; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        f"check_tracking('sqlite:///{tmp_path}/new.db')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.stderr.splitlines()[-1] == f"OSError: MLflow cannot write its database {tmp_path}/new.db: File too large"
    assert not list(tmp_path.glob("new*"))


class Client:
    """Fails as MLflow's does, and as our own code might."""

    def remote(self):
        error = type("MlflowException", (Exception,), {"__module__": "mlflow.exceptions"})
        raise error("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO metrics ...]")

    def flushed(self):
        engine = sqlalchemy.create_engine("sqlite://")
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT x FROM nowhere"))
        except sqlalchemy.exc.OperationalError as error:
            error.add_detail("(raised as a result of Query-invoked autoflush; consider ...)")
            self.remote()

    def ours(self):
        raise KeyError("a mistake of ours")


def test_what_a_client_raises_is_one_line_without_the_password_and_a_mistake_of_ours_stays_one():
    client = Plain(Client(), "postgresql://me:hidden@host/x")
    with pytest.raises(ConnectionError) as lost:
        client.remote()
    assert str(lost.value) == "MLflow at postgresql://host/x: (sqlite3.OperationalError) database or disk is full"
    with pytest.raises(ConnectionError, match="^MLflow at postgresql://host/x: no such table: nowhere$"):
        client.flushed()
    with pytest.raises(KeyError):
        client.ours()


FULL = """
import os, resource, sys
from cluster.tracking import Tracking
tracking = Tracking.start(f"sqlite:///{sys.argv[1]}", "run", {}, {})
size = os.path.getsize(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    for number in range(100):
        tracking.scalars(None, {f"metric.{number}.{place}": 1.0 for place in range(800)})
except ConnectionError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_disk_that_fills_under_mlflows_database_is_one_line(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "mlflow.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"MLflow at sqlite:///{tmp_path}/mlflow.db: disk I/O error")
