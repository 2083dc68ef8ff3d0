"""How each server of the embedded set is started, asked for its health, and reached: Ray, Prefect, MLflow, the dashboard.

The first three come with defaults for a trusted laptop (no token, any origin; Ray on every interface). Here all listen on
loopback alone, every secret travels by file or environment and never on a command line, and every API but MLflow's and the
dashboard's, which only reads, wants a token; these two have no login, and answer to known host names only. Secrets and
ports stay the same from one start to the next.
"""

from __future__ import annotations

import base64
import http.client
import os
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from cluster.database import made
from cluster.profile import CHECKOUT, cores, private_file
from cluster.servers.launch import Launch, inherited, no_proxy
from cluster.servers.ports import LOOPBACK, port_of_home
from cluster.servers.private import write_private
from cluster.servers.processes import Process
from cluster.warm import asking as warm
from cluster.warm.copying import ASSUMED, SOCKET, command

EMPTY_DATABASE = Path(sys.prefix) / "share" / "winnow" / "prefect.db"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no business on loopback


class Server(BaseModel):
    """One running server, as the state file remembers it."""

    model_config = ConfigDict(frozen=True)

    process: Process
    mark: str  # in the environment of everything it starts
    url: str = ""
    token: str = ""
    log: str = ""
    ports: dict[str, int] = {}
    restarts: int = 0  # how often it died and was started again
    streak: int = 0  # how often in a row, each time soon after it was started
    died: float = 0.0  # when that was seen last, in seconds since the epoch


def ray_head(home: Path, temporary: Path, ports: Mapping[str, int]) -> Launch:
    """A head node of its own beside whatever other clusters this machine runs."""
    token = _kept_secret(home / "secrets" / "ray.token", secrets.token_hex(32))
    options = {
        "--node-ip-address": LOOPBACK,
        "--port": 0,
        "--dashboard-host": LOOPBACK,
        "--dashboard-port": ports["ray"],
        "--dashboard-agent-listen-port": ports["ray_agent"],
        "--ray-client-server-port": ports["ray_client"],
        "--min-worker-port": 0,  # both 0: the kernel chooses, instead of a range that other clusters share
        "--max-worker-port": 0,
        "--temp-dir": temporary,
        "--num-cpus": cores(),
        "--object-store-memory": _object_store(),
    }
    flags = ["--head", "--block", "--disable-usage-stats", "--no-monitor"]  # the monitor is the autoscaler's
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *flags]
    command += [str(word) for pair in options.items() for word in pair]
    environment = {**inherited("RAY_"), **ray_environment(home), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # it would move work to other nodes first, and has none
    environment |= {"PYTHONPATH": _python_path(), warm.VARIABLE: str(temporary.with_name(SOCKET))}
    return Launch(command=command, environment=environment, url=f"http://{LOOPBACK}:{ports['ray']}", token=token)


def prefect_server(home: Path, temporary: Path, ports: Mapping[str, int]) -> Launch:
    directory = home / "prefect"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    _begin_database(directory / "prefect.db")
    token = _kept_secret(home / "secrets" / "prefect.auth", f"winnow:{secrets.token_hex(32)}")
    url = f"http://{LOOPBACK}:{ports['prefect']}"
    environment = inherited("PREFECT_") | {
        "PREFECT_HOME": str(directory),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{directory}/prefect.db",
        "PREFECT_SERVER_API_AUTH_STRING": token,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK]
    command += ["--port", str(ports["prefect"])]
    return Launch(command=command, environment=environment, url=f"{url}/api", token=token)


def _begin_database(database: Path) -> None:
    """As a copy of the empty one that the installation made, if it did: Prefect takes ten seconds to make one from nothing, and
    brings an older one up to date itself."""
    if EMPTY_DATABASE.exists() and not database.exists():
        write_private(database, EMPTY_DATABASE.read_bytes())


def mlflow_server(home: Path, temporary: Path, ports: Mapping[str, int]) -> Launch:
    artifacts = home / "mlflow-artifacts"
    artifacts.mkdir(parents=True, exist_ok=True, mode=0o700)
    private_file(home / "mlflow.db")
    port = ports["mlflow"]
    url = f"http://{LOOPBACK}:{port}"
    options = {
        "--host": LOOPBACK,
        "--port": port,
        "--workers": 1,
        "--backend-store-uri": f"sqlite:///{home}/mlflow.db",
        "--default-artifact-root": artifacts,
        "--allowed-hosts": f"{LOOPBACK}:{port},localhost:{port}",
        "--cors-allowed-origins": f"{url},http://localhost:{port}",
    }
    server = [sys.executable, "-m", "mlflow", "server", "--no-serve-artifacts"]
    server += [str(word) for pair in options.items() for word in pair]
    command = server if made(home / "mlflow.db") else [sys.executable, "-m", "cluster.tracking", str(home), *server]
    environment = inherited("MLFLOW_") | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }
    return Launch(command=command, environment=environment, url=url)


def warm_process(home: Path, temporary: Path, ports: Mapping[str, int]) -> Launch:
    """What has imported all that runs need, so that copies of it begin at once."""
    environment = inherited("RAY_") | ray_environment(home) | ASSUMED | {"PREFECT_HOME": str(home / "prefect")}
    return Launch(command=command(temporary.with_name(SOCKET)), environment=environment, url=str(temporary.with_name(SOCKET)))


def dashboard_server(home: Path, temporary: Path, ports: Mapping[str, int]) -> Launch:
    """Reads the home's MLflow server; one that does not answer yet is told of on the page."""
    command = [sys.executable, "-m", "flows.cli", "dashboard", "--wait", "--port", str(ports["dashboard"])]
    environment = inherited("MLFLOW_") | {"MLFLOW_TRACKING_URI": f"http://{LOOPBACK}:{port_of_home(home, 'mlflow')}"}
    environment |= {"WINNOW_HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return Launch(command=command, environment=environment, url=f"http://{LOOPBACK}:{ports['dashboard']}")


LAUNCHES = {
    "warm": warm_process,
    "ray": ray_head,
    "prefect": prefect_server,
    "mlflow": mlflow_server,
    "dashboard": dashboard_server,
}
PROBES = {"ray": "/api/v0/nodes?limit=100&timeout=4", "prefect": "/admin/version", "mlflow": "/health", "dashboard": "/health"}


def healthy(kind: str, server: Server, timeout: float = 5.0) -> bool:
    """Does it answer, and answer *us*: another server on a port that was ours once does not know the token."""
    path = PROBES.get(kind)
    if path is None:
        return server.process.alive
    request = urllib.request.Request(server.url + path, headers=headers(kind, server.token))
    strangers = (OSError, ValueError, http.client.HTTPException)  # the last where what answers there speaks no HTTP
    with suppress(*strangers), _DIRECT.open(request, timeout=timeout) as answer:
        # Ray's dashboard answers long before its node is there, without which no job can be taken.
        return answer.status == 200 and (kind != "ray" or b'"ALIVE"' in answer.read())
    return False


def headers(kind: str, token: str) -> dict[str, str]:
    if not token:
        return {}
    if kind == "prefect":
        return {"Authorization": f"Basic {base64.b64encode(token.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"}


def ray_environment(home: Path) -> dict[str, str]:
    """What every process that talks to our Ray needs."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "secrets" / "ray.token"),
        "RAY_DEDUP_LOGS": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray replaces a loopback address, and listens everywhere
    }


def client_environment(home: Path, servers: Mapping[str, Server]) -> dict[str, str]:
    """Variables for a flow or a driver. They hold secrets: for a process's environment, never for its arguments."""
    environment = {"NO_PROXY": no_proxy(), "no_proxy": no_proxy()}
    if "ray" in servers:
        environment |= ray_environment(home)
    if "prefect" in servers:
        environment |= {
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": servers["prefect"].url,
            "PREFECT_API_AUTH_STRING": servers["prefect"].token,
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",  # as the server wants it, whatever the user's own settings say
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        }
    if "warm" in servers:
        environment[warm.VARIABLE] = servers["warm"].url
    mlflow = servers.get("mlflow")
    environment["MLFLOW_TRACKING_URI"] = mlflow.url if mlflow else f"sqlite:///{home}/mlflow.db"
    return environment


def _kept_secret(file: Path, fresh: str) -> str:
    """The same at every start, so that logins and running flows stay valid."""
    secret = (file.read_text().strip() if file.exists() else "") or fresh
    write_private(file, secret)
    return secret


def _python_path() -> str:
    known = os.environ.get("PYTHONPATH", "")
    return f"{CHECKOUT}:{known}" if known else str(CHECKOUT)


def _object_store() -> int:
    """256 MiB to 1 GiB: stages hand each other paths, not tensors."""
    wanted = min(2**30, max(2**28, psutil.virtual_memory().total // 20))
    with suppress(OSError):
        wanted = min(wanted, max(2**27, shutil.disk_usage("/dev/shm").free // 2))
    return wanted
