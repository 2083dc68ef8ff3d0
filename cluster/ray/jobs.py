"""One Ray job per unit of work: a killed worker or driver ends it with an exit code and its last lines.

The submission id is the key of the work plus an attempt, so Ray itself refuses a second job for the same work, and
whoever asks again is attached to the one that runs: a flow that was killed and triggered anew loses nothing.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.profile import CHECKOUT
from cluster.ray.follower import Away, Follower, JobResult, get_json
from cluster.ray.upload import staged, told

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from cluster.servers.services import Services

ACTIVE = ("PENDING", "RUNNING")
AGENT_SECONDS = 60.0  # how long a cluster may be away, or have no agent yet
SECRET = re.compile(r"(SECRET|PASSWORD|PASSWD|TOKEN|AUTH_STRING|API_KEY|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)
_LONE = threading.Lock()
NOT_SECRET = frozenset({"RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "TOKENIZERS_PARALLELISM"})


class Jobs:
    """The job side of one Ray cluster. `local` means it runs from this checkout and nothing has to be uploaded."""

    def __init__(self, address: str, token: str = "", local: bool = False, checkout: Path = CHECKOUT) -> None:
        self.address = address.rstrip("/")
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.local = local
        self.checkout = Path(checkout)
        self._followers: dict[str, Follower] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, services: Services) -> Jobs:
        """The embedded head, or the one of `winnow up`."""
        server = services.server("ray")
        return cls(server.url, server.token, local=True)

    @classmethod
    def at(cls, address: str) -> Jobs:
        """A cluster of somebody else's; its token in RAY_AUTH_TOKEN, or in the file RAY_AUTH_TOKEN_PATH names."""
        token = os.environ.get("RAY_AUTH_TOKEN") or ""
        if not token and (file := os.environ.get("RAY_AUTH_TOKEN_PATH")):
            token = Path(file).read_text().strip()
        return cls(address, token)

    def submit(
        self,
        key: str,
        entrypoint: str | Sequence[str],
        environment: Mapping[str, str] | None = None,
        resources: Mapping[str, float] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> str:
        """Start the work of `key` unless a job of it is pending or running; the id of the job either way.

        `resources` (cpus, gpus, memory) are the driver's own; without them it runs on the head node beside Ray.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", key):
            raise ValueError(f"key {key!r} should be letters, digits, '_', '.' and '-'")
        with self._runtime_environment(dict(environment or {})) as runtime_environment:
            request = {
                "entrypoint": self._command(entrypoint),
                "runtime_env": runtime_environment,
                "metadata": {"key": key, **(metadata or {})},
                **_driver_resources(resources or {}),
            }
            return self._submit(key, request)

    def _submit(self, key: str, request: dict[str, Any]) -> str:
        attempt, deadline = 1, time.monotonic() + AGENT_SECONDS
        while True:
            job = f"{key[:24]}-{attempt}"
            try:
                info = self.info(job)
                if info is None:
                    return self._client.submit_job(submission_id=job, **request)
            except (RuntimeError, OSError) as error:
                gone = _unanswered(error)
                young = gone or any(words in str(error) for words in ("No available agent", "Failed to connect"))
                if young and time.monotonic() < deadline:
                    time.sleep(1)  # a cluster that has just died is started again, and answers before it can take a job
                elif gone and not isinstance(error, Away):
                    raise Away(f"Ray at {self.address} does not answer: {type(error).__name__}") from error
                elif isinstance(error, OSError) or self.info(job) is None:  # not refused for its name: a real error
                    raise
                continue  # another submitter was faster
            if info["status"] in ACTIVE:
                return job
            attempt += 1

    def info(self, job: str) -> dict[str, Any] | None:
        """What Ray knows of a job; None if there is no such job."""
        return get_json(f"{self.address}/api/jobs/{job}", self.headers)

    def follow(
        self, job: str, on_line: Callable[[str], Any] = lambda line: None, stop: threading.Event | None = None
    ) -> JobResult:
        """Hand every line of the job's log, from the first, to `on_line` until the job ends; safe in any thread.

        Returns early, with the status the job has then, when `stop` is set or `on_line` returns True. Any number of
        threads may follow one job, early or late: one connection feeds them all.
        """
        with self._lock:
            follower = self._followers.get(job)
            if follower is None or follower.failed:
                follower = self._followers[job] = Follower(self.address, self.headers, job)
        return follower.follow(on_line, stop)

    def stop(self, job: str) -> bool:
        """Ask a job to end (SIGTERM, and SIGKILL three seconds later); False if it was not running."""
        try:
            return self._client.stop_job(job)
        except RuntimeError:
            if self.info(job) is None:
                return False
            raise

    @cached_property
    def _client(self) -> JobSubmissionClient:
        from ray.job_submission import JobSubmissionClient  # 0.7 s, wanted only by who submits

        with _LONE, without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would overrule the address given here
            return JobSubmissionClient(self.address, headers=self.headers)

    def _command(self, entrypoint: str | Sequence[str]) -> str:
        if isinstance(entrypoint, str):
            return entrypoint
        words = list(entrypoint)
        if words[0] == "python" and self.local:  # elsewhere it is the cluster's own
            words[0] = sys.executable
        return "exec " + shlex.join(words)  # without a shell in between the exit code is the driver's own

    @contextmanager
    def _runtime_environment(self, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Ray writes these variables into its logs, so a secret must reach the job through the cluster's own ones."""
        for name in environment:
            if SECRET.search(name) and name not in NOT_SECRET:
                raise ValueError(f"{name} looks like a secret; set it where the Ray cluster is started, not per job")
        if self.local:
            path = [str(self.checkout), environment.get("PYTHONPATH", "")]
            environment = {**environment, "PYTHONPATH": ":".join(filter(None, path)), "WINNOW_LOCAL": "1"}
            yield {"env_vars": environment}
            return
        with staged(self.checkout) as folder:
            yield {"env_vars": {**environment, "WINNOW_UPLOAD": told(folder)}, "working_dir": str(folder)}


@contextmanager
def without(*names: str) -> Iterator[None]:
    """This process's environment less these variables, for a moment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _unanswered(error: Exception) -> bool:
    """Whether nobody answered, or not to the end: by our own requests, or by those of Ray's client."""
    from requests import ConnectionError as Unreached
    from requests import Timeout

    return isinstance(error, (Away, Unreached, Timeout))


def _driver_resources(resources: Mapping[str, float]) -> dict[str, float]:
    names = {"cpus": "entrypoint_num_cpus", "gpus": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
    if unknown := set(resources) - set(names):
        raise ValueError(f"no resource '{unknown.pop()}'; choose one of {', '.join(names)}")
    return {names[name]: value for name, value in resources.items() if value}
