"""The dashboard as a web application: pages drawn from what MLflow says, an address bar that holds the choice, and nothing that
could write. It serves every script and style itself, to loopback names alone unless it stands behind a proxy."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from dash import ALL, ClientsideFunction, Dash, Input, Output, State, dcc, no_update, set_props
from flask import Flask, Response, abort, request
from werkzeug.serving import make_server

from dashboards import shell
from dashboards.choice import Choice
from dashboards.pages import claims, compare, model, pareto, table, waterfall
from dashboards.reading import Reading
from dashboards.sight import Places, Sight, empty

PAGES = {
    "": ("Choose", pareto.page),
    "waterfall": ("Waterfall", waterfall.page),
    "compare": ("Compare", compare.page),
    "table": ("Table", table.page),
    "claims": ("Claims", claims.page),
    "model": ("Model", model.page),
}
TABS = ("", "waterfall", "compare", "table", "claims")
CONTROLS = ("recipe", "find", "state", "tag", "since", "until", "show", "y", "x", "within")  # as assets/winnow.js has them
POLL = 2000  # milliseconds
NAMES = ("127.0.0.1", "localhost", "[::1]")
POLICY = (  # from nowhere but here, and to nowhere else
    "default-src 'none'; connect-src 'self';style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval';"
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src blob:; base-uri 'none'; form-action 'none'"
)


def make_app(reading: Reading, places: Places) -> Dash:
    prefix = places.prefix
    app = Dash(
        "winnow",
        title="Winnow",
        update_title=None,
        assets_folder=str(shell.ASSETS),
        index_string=shell.INDEX,
        requests_pathname_prefix=prefix,
        routes_pathname_prefix=prefix,
        suppress_callback_exceptions=True,
        serve_locally=True,
    )
    app.interpolate_index = shell.interpolated(app.interpolate_index)
    app.layout = shell.layout(POLL)
    reading.prepare = lambda: pareto.page(Sight(reading.book, Choice(find="/"), reading, places))
    _show(app, reading, places)
    _follow(app)
    _serve(app.server, reading, places)
    return app


def nowhere(name: str, sight: Sight) -> list[Any]:
    return [empty(f"There is no page {name} here.", dcc.Link("Choose a model", href=sight.page("")))]


def _show(app: Dash, reading: Reading, places: Places) -> None:
    @app.callback(
        Output("page", "children"),
        Output("shape", "data"),
        Output("tabs", "children"),
        Output("known", "children"),
        Output("choices", "data"),
        Output("seen", "data"),
        Input("url", "pathname"),
        Input("url", "search"),
        Input("version", "data"),
        State("shape", "data"),
    )
    def show(path: str, search: str, _: int, before: dict[str, list[str]] | None) -> tuple[Any, ...]:
        version = reading.looked()
        sight = Sight(reading.book, Choice.of(search), reading, places)
        name = f"{path or ''}/".removeprefix(places.prefix).strip("/")  # a proxy's path may come without its slash
        title, draw = PAGES.get(name, ("", partial(nowhere, name)))
        parts = draw(sight)
        shape, before = [name, *map(shell.shape, parts)], before or {}
        told = [*map(shell.told, parts)]
        if alike := shape == before.get("parts"):  # a figure keeps its zoom, a table its order and its place
            for number, part in enumerate(parts):
                if not told[number] or told[number] != before["told"][number]:
                    set_props(*shell.changes(number, part))
        set_props("drawn", {"data": f"{path}{search}"})
        page = no_update if alike else shell.page(f"page-{name or 'choose'}", title, parts)
        choices = shell.choices(sight)
        kept = str(hash(repr(choices)))
        tabs = [shell.tab(PAGES[one][0], sight.page(one, model=""), one == name) for one in TABS]
        news = no_update if kept == before.get("choices") else choices
        return page, {"parts": shape, "told": told, "choices": kept}, tabs, shell.known(sight), news, version

    @app.callback(
        Output("hovered", "children"), Input("pareto", "hoverData"), State("url", "search"), prevent_initial_call=True
    )
    def hover(over: dict[str, Any] | None, search: str) -> str:
        run = (over or {"points": [{}]})["points"][0].get("customdata", "")
        return pareto.hovered(Sight(reading.book, Choice.of(search), reading, places), run)

    @app.callback(Input("again", "n_clicks"), prevent_initial_call=True)
    def again(_: int) -> None:
        reading.again()


def _follow(app: Dash) -> None:
    """What happens in the browser alone: the address bar and the controls follow each other, clicks and ticks go into it."""

    def follow(name: str, *given: Any, later: bool = True) -> None:
        app.clientside_callback(ClientsideFunction("winnow", name), *given, prevent_initial_call=later)

    controls = [f"c-{name}" for name in CONTROLS]
    path, search = State("url", "pathname"), State("url", "search")
    to_path, to_search = Output("url", "pathname", allow_duplicate=True), Output("url", "search", allow_duplicate=True)
    given = [Input(id, "value") for id in controls]
    follow("choose", Output("url", "search"), Input("url", "search"), *given, State("choices", "data"), later=False)
    follow("offer", Input("choices", "data"), search, later=False)
    follow("open", to_path, to_search, Input("pareto", "clickData"), path, search)
    any_grid = {"grid": ALL}
    grids = State(any_grid, "id"), State(any_grid, "rowData")
    follow("pick", to_search, Input(any_grid, "selectedRows"), *grids, search)
    ticked = {"key": ALL, "told": ALL}
    follow("columns", to_search, Input(ticked, "value"), State(ticked, "id"), search)
    follow("theme", Output("theme", "title"), Input("theme", "n_clicks"), later=False)
    told = State("seen", "data"), State("away", "children")
    follow("poll", Output("version", "data"), Output("away", "children"), Input("poll", "n_intervals"), *told)
    again = Output("version", "data", allow_duplicate=True)
    follow("settle", again, Input("drawn", "data"), path, search, *grids, State(any_grid, "selectedRows"))


def _serve(server: Flask, reading: Reading, places: Places) -> None:
    prefix = places.prefix

    @server.before_request
    def only_read() -> None:
        if request.method not in ("GET", "HEAD") and request.path != f"{prefix}_dash-update-component":
            abort(405)
        if (
            prefix == "/" and request.host.rsplit(":", 1)[0] not in NAMES
        ):  # a page elsewhere that makes its name mean this machine
            abort(403, "this dashboard answers to 127.0.0.1 and localhost; behind a proxy give it --prefix")

    @server.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        return response

    @server.get(f"{prefix}health")
    def health() -> str:
        return "OK, all read" if reading.complete else "OK"

    @server.get(f"{prefix}version")
    def version() -> str:
        """What an open page asks every few seconds; who asks is who makes MLflow be read again."""
        return str(reading.looked())

    @server.get(f"{prefix}table.csv")
    def as_csv() -> Response:
        sight = Sight(reading.book, Choice.of(request.query_string.decode()), reading, places)
        return Response(
            table.as_csv(sight), mimetype="text/csv", headers={"Content-Disposition": "attachment; filename=winnow.csv"}
        )

    if prefix != "/":
        server.wsgi_app = _below(prefix, server.wsgi_app)  # type: ignore[method-assign]


def _below(prefix: str, inner: Any) -> Any:
    """A proxy may hand its path on, or cut it off."""

    def prefixed(environ: dict[str, Any], start: Any) -> Any:
        if not environ["PATH_INFO"].startswith(prefix):
            environ["PATH_INFO"] = prefix + environ["PATH_INFO"].lstrip("/")
        return inner(environ, start)

    return prefixed


def make_service(reading: Reading, places: Places, host: str, port: int) -> Any:
    """A server that listens already; raises OSError where the port is taken."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for every poll
    return make_server(host, port, make_app(reading, places).server, threaded=True)
