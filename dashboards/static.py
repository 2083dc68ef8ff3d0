"""The same pages as one file that needs nothing else: for the run in MLflow, a mail, an archive.

The components of the live pages become plain HTML, the figures keep their hover. plotly's script lies in the file, compressed,
and the browser unpacks it; links go to places within the file, or elsewhere.
"""

from __future__ import annotations

import base64
import gzip
import html as markup
import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from cluster.tracking import Tracking
from dashboards import shell
from dashboards.charts import CONFIG
from dashboards.choice import Choice
from dashboards.numbers import shown, title
from dashboards.pages import claims, compare, pareto, table, waterfall
from dashboards.reading import Reading
from dashboards.sight import Places, Sight

NAME = "winnow.html"  # of the file in a run
SECTIONS = {"choose": pareto, "waterfall": waterfall, "compare": compare, "table": table, "claims": claims}
MOST_WATERFALLS = 20
VOID = ("br", "hr", "img", "input")
ATTRIBUTES = {"className": "class", "tabIndex": "tabindex", "colSpan": "colspan"}
SCRIPT = """
const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), one => one.charCodeAt(0));
new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text().then(text => {
  const script = document.createElement("script"); script.textContent = text; document.head.append(script);
  for (const one of document.querySelectorAll("script.figure")) {
    const {data, layout} = JSON.parse(one.textContent);
    Plotly.newPlot(one.previousElementSibling, data, layout, CONFIG);
  }
});
"""


def everything(reading: Reading, places: Places, query: str = "") -> str:
    """All pages of what was read and chosen."""
    sight = Sight(reading.book, Choice.of(query), reading, Places("", places.mlflow, places.prefect))
    parts = [f"<section id='{name}'><h1>{name.capitalize()}</h1>{_section(sight, name)}</section>" for name in SECTIONS]
    tabs = "".join(f"<a class='to-page' href='#{name}'>{name.capitalize()}</a>" for name in SECTIONS)
    style = (shell.ASSETS / "winnow.css").read_text(encoding="utf-8")
    known, script = render(shell.known(sight)), SCRIPT.replace("CONFIG", json.dumps(CONFIG))
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='color-scheme' content='light dark'>"
        f"<title>Winnow</title><style>{style}</style></head>"
        f"<body><header><strong class='brand'>Winnow</strong><nav>{tabs}</nav>"
        f"<span id='known'>{known}</span></header><main>{''.join(parts)}</main>"
        f"<script id='plotly' type='text/plain'>{_plotly()}</script><script>{script}</script></body></html>"
    )


def write(tracking: Tracking, uri: str) -> None:
    """The pages of one run, in that run."""
    reading = Reading(uri, tracking.client)
    reading.book, reading.complete = reading.only(tracking.parent), True
    places = Places("#", uri.rstrip("/") if uri.startswith("http") else "")
    tracking.text(None, everything(reading, places), NAME)


def _section(sight: Sight, name: str) -> str:
    if name == "table" and sight.models:
        return _table(sight)
    if name == "waterfall" and sight.pipelines:  # live, one is chosen; here all stand below each other
        shown_ones = sight.pipelines[:MOST_WATERFALLS]
        pages = (Sight(sight.book, Choice.of(f"pipeline={one.run}"), sight.reading, sight.places) for one in shown_ones)
        return "".join(render(waterfall.page(one)) for one in pages)
    return render(SECTIONS[name].page(sight))


def _table(sight: Sight) -> str:
    names, rows = table.columns(sight), []
    for model, numbers in sight.models:
        told = [sight.book.state(model), model.method, model.address, model.gates, sight.aliases(model)]
        cells = "".join(f"<td>{markup.escape(one)}" for one in [*told, *(shown(one, numbers.get(one)) for one in names)])
        rows.append(f"<tr><th scope='row'><a id='{model.run}'></a>{markup.escape(sight.name(model))}{cells}")
    titles = ("model", "state", "method", "artifact", "gates", "alias", *map(title, names))
    head = "".join(f"<th scope='col'>{markup.escape(one)}" for one in titles)
    return f"<div class='wide'><table class='sheet numbers'><thead><tr>{head}</thead><tbody>{''.join(rows)}</table></div>"


@cache
def _plotly() -> str:
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()


def render(part: Any) -> str:
    """Components as HTML. What only acts on the live page, a control or a link to it, is left out or becomes its text."""
    if part is None or isinstance(part, bool):
        return ""
    if isinstance(part, (str, int, float)):
        return markup.escape(str(part))
    if isinstance(part, Iterable) and not hasattr(part, "to_plotly_json"):
        return "".join(map(render, part))
    kind, props = part._type, part.to_plotly_json()["props"]
    if kind == "Graph":
        figure = json.dumps(json.loads(to_json_plotly(props["figure"]))).replace("<", "\\u003c")
        place = f"<div style='height:{props['figure']['layout']['height']}px'></div>"
        return f"{place}<script class='figure' type='application/json'>{figure}</script>"
    inner = render(props.get("children"))
    if kind == "Link":
        run = Choice.of(props["href"].partition("?")[2]).model
        style = props.get("className") or ""
        return f"<a class='{style}' href='#{run}'>{inner}</a>" if run and "button" not in style else ""
    told = {
        ATTRIBUTES.get(name, name): value
        for name, value in props.items()
        if name not in ("children", "id", "style", "n_clicks")
    }
    attributes = "".join(f" {name}='{markup.escape(str(value), quote=True)}'" for name, value in told.items())
    tag = kind.lower()
    return f"<{tag}{attributes}>" + ("" if tag in VOID else f"{inner}</{tag}>")
