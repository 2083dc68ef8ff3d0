"""Asks the servers of a home over HTTP, as their own pages do: short questions, with a deadline, and nothing imported."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
import uuid
from typing import Any

from cluster.servers.embedded import Server, headers

DEADLINE = 5.0
UNREACHED = (OSError, http.client.HTTPException, ValueError)  # the last where an answer is no JSON
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Api:
    """One server. What cannot be reached, or answers with an error, is one of UNREACHED."""

    def __init__(self, kind: str, server: Server) -> None:
        self.kind, self.url = kind, server.url
        self.headers = {**headers(kind, server.token), "Content-Type": "application/json"}

    def ask(self, method: str, path: str, document: Any = None) -> Any:
        if self.kind == "prefect" and method != "GET" and "Prefect-Csrf-Token" not in self.headers:
            name = str(uuid.uuid4())
            token = self.ask("GET", f"/csrf-token?client={name}")["token"]
            self.headers |= {"Prefect-Csrf-Client": name, "Prefect-Csrf-Token": token}
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.url + path, body, self.headers, method=method)
        try:
            with _DIRECT.open(request, timeout=DEADLINE) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 403 and self.headers.pop("Prefect-Csrf-Token", ""):  # they expire
                return self.ask(method, path, document)
            raise
        return json.loads(text) if text else None
