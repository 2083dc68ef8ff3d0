"""Follow one job's log to its end: one connection, any number of listeners, no line lost and none twice.

Ray's own `tail_job_logs` looks at the file every two seconds; the log API used here takes the interval as a parameter
and is 0.1 s behind. Connections drop (the dashboard's proxy ends every stream after five minutes), so the follower
counts the bytes it has delivered and goes on from there.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
LOG_INTERVAL = 0.1  # seconds between looks at the log file
POLL = 0.3  # seconds between looks at the job's status
STREAM = 240.0  # seconds one connection is kept: less than the proxy allows, and a half-dead one is noticed
PATIENCE = 60.0  # seconds the dashboard may be away before the job counts as lost
KEPT = 20_000  # lines a late listener still gets
LAST = 30
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class JobResult:
    """How a job ended. LOST: the cluster went away with it. PENDING or RUNNING: the follower was told to stop early."""

    job: str
    status: str
    exit_code: int | None = None
    message: str = ""
    last_lines: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status == "SUCCEEDED"


class Away(ConnectionError):
    """No answer, or not yet: a cluster that died may be back in a moment."""


def get_json(url: str, headers: dict[str, str], timeout: float = 30.0) -> Any:
    """The answer as JSON, None for 404. Every other failure is a ConnectionError in one line; Away if it may pass."""
    try:
        with _DIRECT.open(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        hint = " (is RAY_AUTH_TOKEN right?)" if error.code in (401, 403) else ""
        raise (Away if error.code >= 500 else ConnectionError)(f"{url} answered {error.code} {error.reason}{hint}") from None
    except (OSError, ValueError) as error:
        raise Away(f"{url} does not answer: {getattr(error, 'reason', error)}") from None


class Follower:
    """One job. The thread starts with the object and ends with the job."""

    def __init__(self, address: str, headers: dict[str, str], job: str) -> None:
        self.address, self.headers, self.job = address, headers, job
        self.result: JobResult | None = None
        self.status = "PENDING"
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._listeners: list[queue.SimpleQueue] = []
        self._lock = threading.Lock()
        self._offset = 0
        self._tail = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        threading.Thread(target=self._run, name=f"follow {job}", daemon=True).start()

    @property
    def failed(self) -> bool:
        """Lost: a later call should look again."""
        return self.result is not None and self.result.status == "LOST"

    def follow(self, on_line: Callable[[str], Any], stop: threading.Event | None) -> JobResult:
        inbox: queue.SimpleQueue = queue.SimpleQueue()
        with self._lock:
            for line in self._lines:
                inbox.put(line)
            if self.result is not None:
                inbox.put(None)
            self._listeners.append(inbox)
        try:
            while True:
                with suppress(queue.Empty):
                    line = inbox.get(timeout=0.2 if stop else None)
                    if line is None:
                        return self.result
                    if on_line(line) is True:
                        break
                if stop is not None and stop.is_set():
                    break
            return self.result or JobResult(self.job, self.status, last_lines=self._last())
        finally:
            with self._lock:
                self._listeners.remove(inbox)

    def _run(self) -> None:
        try:
            result = asyncio.run(self._watch())
        except Exception as error:
            result = JobResult(self.job, "LOST", message=f"{type(error).__name__}: {error}", last_lines=self._last())
        with self._lock:
            self.result = result
            for inbox in self._listeners:
                inbox.put(None)

    async def _watch(self) -> JobResult:
        """Read the log and ask for the status side by side, until the status is final and the log is read out."""
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(headers=self.headers, timeout=limits) as session:
            reader = None
            seen = time.monotonic()
            while True:
                try:
                    info = await self._info(session)
                    seen = time.monotonic()
                except (OSError, TimeoutError, aiohttp.ClientError) as error:
                    if time.monotonic() - seen > PATIENCE:
                        message = f"{self.address} has not answered for {PATIENCE:.0f} s: {error}"
                        return JobResult(self.job, "LOST", message=message, last_lines=self._last())
                    await asyncio.sleep(1.0)
                    continue
                if info is None:
                    return JobResult(self.job, "LOST", message=f"Ray at {self.address} knows no job {self.job}")
                self.status = info["status"]
                if self.status in TERMINAL:
                    return await self._finish(session, reader, info)
                if reader is None and info.get("driver_node_id"):
                    reader = asyncio.create_task(self._read(session, info["driver_node_id"]))
                await asyncio.sleep(POLL)

    async def _info(self, session) -> dict | None:
        async with session.get(f"{self.address}/api/jobs/{self.job}", timeout=_seconds(30)) as answer:
            if answer.status == 404:
                return None
            answer.raise_for_status()
            return await answer.json()

    async def _read(self, session, node: str) -> None:
        """Stream the log for ever, connecting again from the byte where the last connection ended."""
        import aiohttp

        query = {**self._file(node), "interval": str(LOG_INTERVAL)}
        while True:
            with suppress(OSError, TimeoutError, aiohttp.ClientError):
                url = f"{self.address}/api/v0/logs/stream"
                async with session.get(url, params=query, timeout=_seconds(STREAM)) as answer:
                    if answer.status == 200:
                        await self._deliver(answer)
            await asyncio.sleep(LOG_INTERVAL)

    async def _finish(self, session, reader: asyncio.Task | None, info: dict) -> JobResult:
        """The rest of the log, which is complete now, and the verdict."""
        import aiohttp

        if reader is not None:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        with suppress(OSError, TimeoutError, aiohttp.ClientError):
            if node := info.get("driver_node_id"):
                url = f"{self.address}/api/v0/logs/file"
                async with session.get(url, params=self._file(node), timeout=_seconds(60)) as answer:
                    if answer.status == 200:
                        await self._deliver(answer)
        self._feed(b"", final=True)
        code = info.get("driver_exit_code")
        code = 128 - code if code is not None and code < 0 else code  # a signal, as a shell would say it
        return JobResult(self.job, info["status"], code, info.get("message") or "", self._last())

    def _file(self, node: str) -> dict[str, str]:
        return {"node_id": node, "filename": f"job-driver-{self.job}.log", "lines": "-1"}

    async def _deliver(self, answer) -> None:
        """Feed what is new in an answer that starts at the first byte of the log."""
        position = 0
        async for chunk in answer.content.iter_any():
            fresh = chunk[max(0, self._offset - position) :]
            position += len(chunk)
            if fresh:
                self._offset = position
                self._feed(fresh)

    def _feed(self, raw: bytes, final: bool = False) -> None:
        text = self._tail + self._decoder.decode(raw, final)
        *lines, self._tail = text.split("\n")
        if final and self._tail:
            lines, self._tail = [*lines, self._tail], ""
        with self._lock:
            for line in lines:
                line = line.rstrip("\r")
                self._lines.append(line)
                for inbox in self._listeners:
                    inbox.put(line)

    def _last(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._lines)[-LAST:]


def _seconds(total: float):
    import aiohttp

    return aiohttp.ClientTimeout(total=total)
