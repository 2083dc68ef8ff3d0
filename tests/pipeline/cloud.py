"""A cluster of hosts as somebody else would have set it up: S3, PostgreSQL, MLflow and Prefect on one, Ray on three."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.profile import CHECKOUT
from tests.pipeline.hosts import Host, Network, Submitter

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
SECRET, LOGIN = "only-the-environment-knows-this", "admin:nor-this-does-anybody-else"
STORE = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "t" * 64,
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    "RAY_health_check_period_ms": "1000",  # a node that says nothing for 6 seconds is dead; Ray's own patience is 75
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}

ONE_CORE = {"default": {"cpus": 1}, "evaluate": {"cpus": 0.5, "threads": 1}}


def until(what: str, true: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


class Cloud:
    """The hosts of this test, and what runs on each."""

    def __init__(self, root: Path) -> None:
        self.root, self.network = root, Network(root)
        self.services = self.network.host("services", "srv/services")
        self.head = self.network.host("head", "opt/ray/env")
        self.workers = [self.network.host("first", "conda/first"), self.network.host("second", "home/second/venv")]
        self.submitter = self.network.host("submitter", "here", Submitter)
        self.s3 = {**STORE, "AWS_ENDPOINT_URL_S3": f"http://{self.services.address}:5000"}
        self.tracking = f"http://{self.services.address}:5001"
        self.prefect = f"http://{self.services.address}:4200"
        self.database = f"postgresql://mlflow:{SECRET}@{self.services.address}:5432/postgres"
        self.pages = Path(tempfile.mkdtemp(prefix="winnow-postgres-", dir=None if self.network.why_not else self.services.own))

    def start(self) -> None:
        services = self.services
        services.start([services.python, "-m", "moto.server", "-H", services.address, "-p", "5000"], log="s3")
        services.start(self._postgres(), {"PGPASSWORD": SECRET}, log="postgres")
        self._head()
        for worker in self.workers:
            self._worker(worker)
        self._mlflow()
        self._prefect()

    def _postgres(self) -> list[str]:
        """Debian's, by a user other than root, with a password."""
        (self.pages / "password").write_text(SECRET)
        if not os.geteuid():
            for path in (self.pages, self.pages / "password"):
                shutil.chown(path, "nobody")
        pages, binaries = self.pages, POSTGRES[-1]
        if not self.network.why_not:
            pages = Path(self.services.place) / pages.name
        make = f"{binaries}/initdb -D {pages}/data -U mlflow -A scram-sha-256 --pwfile {pages}/password --no-sync >/dev/null"
        allow = f"echo 'host all all {self.services.address}/24 scram-sha-256' >> {pages}/data/pg_hba.conf"
        more = f"echo 'CREATE DATABASE prefect' | {binaries}/postgres --single -D {pages}/data postgres >/dev/null"
        serve = f"exec {binaries}/postgres -D {pages}/data -k {pages} -h {self.services.address} -F"
        script = f"{make} && {allow} && {more} && {serve}"
        return ["sh", "-c", script] if os.geteuid() else ["runuser", "-u", "nobody", "--", "sh", "-c", script]

    def _mlflow(self) -> None:
        """Started again until its database is there; artifacts go through it into the bucket."""
        options = ["--host", self.services.address, "--port", "5001", "--workers", "1", "--allowed-hosts", "*"]
        options += ["--artifacts-destination", "s3://winnow/mlflow"]
        environment = {
            **self.s3,
            "MLFLOW_BACKEND_STORE_URI": self.database,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.services.keep([self.services.python, "-m", "mlflow", "server", *options], environment, log="mlflow")

    def _prefect(self) -> None:
        options = ["server", "start", "--host", self.services.address, "--port", "4200"]
        database = f"postgresql+asyncpg://mlflow:{SECRET}@{self.services.address}:5432/prefect"
        environment = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database, "PREFECT_SERVER_API_AUTH_STRING": LOGIN}
        environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        self.services.keep([self.services.python, "-m", "prefect", *options], environment, log="prefect")

    def _head(self) -> None:
        where = ["--head", "--port=6379", f"--dashboard-host={self.head.address}", "--dashboard-port=8265", "--num-cpus=0"]
        self._ray(self.head, [*where, f"--temp-dir={self._short('ray')}"])

    def _worker(self, worker: Host) -> None:
        """With an older checkout of its own on its path, which nothing must come from."""
        older = worker.own / "older" / "tasks"
        older.mkdir(parents=True)
        (older / "__init__.py").write_text("raise ImportError('the tasks of an older checkout')")
        self._ray(worker, [f"--address={self.head.address}:6379", "--num-cpus=1"], f"{worker.place}/older")

    def _ray(self, host: Host, options: list[str], path: str = "") -> None:
        command = [host.python, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        options = [*options, f"--node-ip-address={host.address}", "--object-store-memory=100000000"]
        if self.network.why_not:  # they share this machine's ports
            number = self.network.hosts.index(host)
            options += [f"--dashboard-agent-listen-port={23650 + number}", f"--metrics-export-port={23660 + number}"]
        host.keep([*command, *options], {**RAY, **self.s3, "PYTHONPATH": path}, log="ray")

    def _short(self, name: str) -> str:
        return f"/tmp/{self.network.switch}-{name}"  # socket paths have room for 107 bytes

    def write(self, name: str, document: dict[str, Any]) -> str:
        """A file on the submitter's host; its path there."""
        (self.submitter.own / name).write_text(yaml.safe_dump(document))
        return f"{self.submitter.place}/{name}"

    def profile(self) -> str:
        document = {
            "store": "s3://winnow/runs",
            "scratch": f"{self.submitter.shared}/scratch",
            "ray": {"address": f"http://{self.head.address}:8265"},
            "prefect": {"api_url": f"{self.prefect}/api"},
            "mlflow": {"tracking_uri": self.tracking},
            "ranks": 2,
            "checkpoint_every_seconds": 0.3,
            "stages": ONE_CORE,
        }
        return self.write("cluster.yaml", document)

    def nodes(self) -> dict[str, list[str]]:
        """What Ray thinks of each address: ALIVE or DEAD, for every node it ever had there."""
        request = f"""
import json, urllib.request
request = urllib.request.Request('http://{self.head.address}:8265/nodes?view=summary')
request.add_header('Authorization', 'Bearer {RAY["RAY_AUTH_TOKEN"]}')
try: print(json.dumps(json.load(urllib.request.urlopen(request, timeout=5))['data']['summary']))
except OSError: print('[]')"""
        found: dict[str, list[str]] = {}
        for node in json.loads(self.ask(request)):
            found.setdefault(node["ip"], []).append(node["raylet"].get("state", "DEAD"))
        return found

    def winnow(self, *arguments: str, python: Sequence[str] = ("-m",)) -> subprocess.Popen:
        """The command on the submitter's host, with its secrets in the environment."""
        environment = {**RAY, **self.s3, "PREFECT_API_AUTH_STRING": LOGIN, "PYTHONPATH": str(CHECKOUT)}
        environment |= {"WINNOW_HOME": f"{self.submitter.place}/home"}
        pipes = {"stdout": subprocess.PIPE, "stderr": (self.root / "winnow.err").open("ab"), "text": True}
        return self.submitter.start([sys.executable, *python, "flows.cli", *arguments], environment, **pipes)

    def wait(self) -> None:
        """Until all answer, and the profile's services let us in."""
        until("S3", lambda: self.answers(self.s3["AWS_ENDPOINT_URL_S3"]))
        self.ask("import boto3; boto3.client('s3').create_bucket(Bucket='winnow')")
        until("Ray", lambda: self.answers(f"http://{self.head.address}:8265/api/version"))
        until("MLflow", lambda: self.answers(f"{self.tracking}/health"))
        until("Prefect", lambda: self.answers(f"{self.prefect}/api/health"))
        until("workers", lambda: sum(self.nodes().values(), []).count("ALIVE") == 3)
        out, _ = self.winnow("doctor", "-p", self.profile(), "--json").communicate(timeout=300)
        (self.root / "doctor.json").write_text(out)
        found = {finding["check"]: finding for finding in json.loads(out)}
        assert all(found[check]["ok"] for check in ("ray.address", "prefect.api_url", "mlflow.tracking_uri", "store")), found

    def answers(self, url: str) -> bool:
        code = f"""
import urllib.error, urllib.request
try: print(urllib.request.urlopen({url!r}, timeout=5).status)
except urllib.error.HTTPError as error: print(error.code)
except OSError: print('nobody')"""
        return self.ask(code) != "nobody"

    def ask(self, code: str) -> str:
        """What a line of Python says on the services' host."""
        python = [self.services.python, "-c", code]
        process = self.services.start(python, self.s3, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
        return out.strip()

    def record(self, address: str) -> dict[str, Any]:
        """What the bucket says of an artifact."""
        key = f"runs/{address}/record.json"
        found = f"boto3.client('s3').get_object(Bucket='winnow', Key={key!r})['Body'].read().decode()"
        return json.loads(self.ask(f"import boto3; print({found})"))

    def tracked(self) -> int:
        """Finished runs that PostgreSQL holds."""
        count = "cursor.execute('select count(*) from runs where status = %s', ['FINISHED']); print(cursor.fetchone()[0])"
        return int(self.ask(f"import psycopg2; cursor = psycopg2.connect({self.database!r}).cursor(); {count}"))

    def end(self) -> None:
        self.network.end()
        for folder in (self.pages, self._short("ray")):
            shutil.rmtree(folder, ignore_errors=True)
