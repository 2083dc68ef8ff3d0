"""``winnow dashboard``: the comparison of models that any MLflow knows of, in a browser or as one file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.options import JsonOption, ProfileOption, console, file_to_write

if TYPE_CHECKING:
    from cluster.profile import Profile
    from cluster.servers.services import Services
    from dashboards.reading import Reading
    from dashboards.sight import Places

PREFIX = re.compile(r"/([A-Za-z0-9._~-]+/)*")
MLFLOW_HELP = "the MLflow it reads, a server or a database; the profile's, else this home's, unless given"
PORT_HELP = "where it listens on loopback; the port of this home unless given"


def dashboard(
    profile: ProfileOption = "local",
    mlflow: Annotated[str | None, typer.Option(metavar="URL", help=MLFLOW_HELP)] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help=PORT_HELP)] = None,
    prefix: Annotated[str, typer.Option(metavar="/PATH", help="the path at which a proxy serves it")] = "/",
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", callback=file_to_write, help="write all pages into this HTML file alone"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="begin though MLflow does not answer yet")] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose a model: quality against cost, what each stage did, models side by side; reads MLflow, and writes nothing."""
    from cluster.profile import home, load_profile
    from cluster.servers.ports import LOOPBACK, ports_for, taken
    from cluster.servers.services import Services
    from cluster.tracking import tracking_uri

    prefix = f"/{prefix.strip('/')}/".replace("//", "/")
    if not PREFIX.fullmatch(prefix):
        raise ValueError(f"--prefix: {prefix!r} is no path; give one like /winnow")
    if port and not export and taken(port):
        raise ValueError(f"--port: another program listens on {port}; choose another, or leave it out")
    where, services = load_profile(profile), Services()
    os.environ.update(services.environment())  # the MLflow server that is up, if one is
    named = _address(mlflow) if mlflow is not None else where.mlflow.tracking_uri
    uri = tracking_uri(named)
    if not (export or port or prefix != "/" or named) and (standing := _standing(services)):
        _say(standing, uri, "winnow up serves it", as_json)
        return
    from dashboards.reading import Reading

    reading, places = Reading(uri), _places(where, services, uri, prefix)
    if not wait:
        _knock(reading, "--mlflow" if mlflow is not None else "mlflow.tracking_uri", named)
    if export is not None:
        _export(reading, places, export, as_json)
        return
    from dashboards.app import make_service

    chosen = port or ports_for(home(), "dashboard", fixed=False)["dashboard"]
    reading.start()
    service = make_service(reading, places, LOOPBACK, chosen)
    _say(f"http://{LOOPBACK}:{chosen}{prefix}", uri, "Ctrl-C ends it", as_json)
    service.serve_forever()


def _address(given: str) -> str:
    from cluster.profile import tracking_address

    try:
        return tracking_address(given)
    except ValueError as reason:
        raise ValueError(f"--mlflow: {reason}") from None


def _knock(reading: Reading, what: str, named: str | None) -> None:
    """Ask the MLflow once what will be asked of it all the time. Raises OSError or ValueError, of one line, where it is away or
    is none: who only reads makes no database."""
    from cluster.profile import SQLITE
    from cluster.reach import check_tracking

    file = Path((named or "").removeprefix(SQLITE))
    if (named or "").startswith(SQLITE) and not file.is_file():
        raise ValueError(f"{what}: there is no database {file}; a run makes it, or mend the address")
    check_tracking(reading.uri, what)
    reading.find()


def _standing(services: Services) -> str:
    """Where ``winnow up`` serves this home's."""
    found = services.status().get("dashboard")
    return f"{found.url}/" if found and found.healthy else ""


def _places(profile: Profile, services: Services, uri: str, prefix: str) -> Places:
    from dashboards.sight import Places

    standing = services.state.servers.get("prefect") if services.state else None
    api = profile.prefect.api_url or (standing.url if standing else "")
    return Places(prefix, uri.rstrip("/") if uri.startswith("http") else "", api.rstrip("/").removesuffix("/api"))


def _export(reading: Reading, places: Places, file: Path, as_json: bool) -> None:
    from dashboards.static import everything

    reading.refresh()
    file.write_text(everything(reading, places), encoding="utf-8")
    runs = len(reading.book.pipelines)
    print(json.dumps({"file": str(file), "runs": runs})) if as_json else console.print(
        f"{runs} runs -> {file}", highlight=False
    )


def _say(url: str, reads: str, more: str, as_json: bool) -> None:
    from cluster.reach import shown

    if as_json:
        print(json.dumps({"url": url, "mlflow": shown(reads)}), flush=True)
    else:
        console.print(f"{url}  (reads MLflow at {shown(reads)}; {more})", highlight=False, soft_wrap=True)
