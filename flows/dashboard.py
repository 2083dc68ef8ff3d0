"""``winnow dashboard``: the comparison of models that any MLflow knows of, in a browser or as one file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from flows.options import ProfileOption, console

PREFIX = re.compile(r"/([A-Za-z0-9._~-]+/)*")


def dashboard(
    profile: ProfileOption = "local",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="where it listens on loopback; that of this home unless given")] = None,
    prefix: Annotated[str, typer.Option(metavar="/PATH/", help="the path at which a proxy serves it")] = "/",
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="write all pages into one HTML file, and serve nothing")] = None,
) -> None:
    """Choose a model: quality against cost, what each stage did, models side by side, read from MLflow and nothing else."""
    from cluster.profile import home, load_profile
    from cluster.servers.ports import LOOPBACK, ports_for
    from cluster.servers.services import Services
    from cluster.tracking import connect, tracking_uri

    prefix = f"/{prefix.strip('/')}/".replace("//", "/")
    if not PREFIX.fullmatch(prefix):
        raise ValueError(f"--prefix: {prefix!r} is no path; give one like /winnow/")
    where, services = load_profile(profile), Services()
    os.environ.update(services.environment())  # the MLflow server that is up, if one is
    uri = where.mlflow.tracking_uri or tracking_uri()
    if export is None and port is None and prefix == "/" and (url := _stands(services, uri)):
        console.print(f"winnow up serves it: {url}", highlight=False)
        return
    client = connect(uri)
    from dashboards.app import make_service
    from dashboards.reading import Reading
    from dashboards.sight import Places
    from dashboards.static import everything

    reading = Reading(uri, client)
    api = where.prefect.api_url or (services.server("prefect").url if services.state and "prefect" in services.state.servers else "")
    places = Places(prefix, uri.rstrip("/") if uri.startswith("http") else "", api.removesuffix("/api"))
    if export is not None:
        reading.refresh()
        export.write_text(everything(reading, places), encoding="utf-8")
        console.print(f"{len(reading.book.pipelines)} runs -> {export}", highlight=False)
        return
    chosen = port or ports_for(home(), "dashboard", fixed=False)["dashboard"]
    service = make_service(reading, places, LOOPBACK, chosen)
    reading.start()
    console.print(f"http://{LOOPBACK}:{chosen}{prefix}  (Ctrl-C ends it)", highlight=False)
    service.serve_forever()
