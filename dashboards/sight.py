"""What a page is drawn from: the book, what was chosen of it, and where else a thing can be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dash import dcc, html

from dashboards.book import Book, Pipeline, Stage
from dashboards.charts import CONFIG
from dashboards.choice import Choice
from dashboards.reading import Reading

STATES = {  # a sign beside each word, for who does not see the colour
    "finished": "✓",
    "cached": "↺",
    "running": "▶",
    "failed": "✕",
    "killed": "■",
    "scheduled": "…",
}
GATE_SIGNS = {"passes": "✓", "fails": "✕"}


@dataclass(frozen=True)
class Places:
    """Addresses: of this page behind a proxy, and of MLflow's and Prefect's pages where there are any."""

    prefix: str = "/"
    mlflow: str = ""
    prefect: str = ""


@dataclass(frozen=True)
class Sight:
    book: Book
    choice: Choice
    reading: Reading
    places: Places = Places()

    @cached_property
    def pipelines(self) -> list[Pipeline]:
        return self.choice.pipelines(self.book)

    @cached_property
    def chosen(self) -> set[str]:
        return {one.run for one in self.pipelines}

    @cached_property
    def models(self) -> list[tuple[Stage, Mapping[str, float]]]:
        return self.choice.models(self.book)

    @cached_property
    def metrics(self) -> set[str]:
        return {name for _, numbers in self.models for name in numbers}

    @cached_property
    def _alike(self) -> Mapping[str, int]:
        return Counter(model.id for model, _ in self.models)

    @cached_property
    def _recipes(self) -> set[str]:
        return {one.recipe for one in self.pipelines}

    def page(self, name: str, **changed: Any) -> str:
        """The address of another page with the same choice, or a little of it changed."""
        return f"{self.places.prefix}{name}{self.choice.but(**changed)}"

    def mlflow(self, run: str) -> str:
        where = self.places.mlflow
        return f"{where}/#/experiments/{self.reading.experiment}/runs/{run}" if where else ""

    def aliases(self, model: Stage) -> str:
        """What a model is called in MLflow's registry; empty where nobody gave it an alias."""
        return "; ".join(self.book.aliases.get(model.address, ()))

    def prefect(self, pipeline: Pipeline) -> str:
        flow = pipeline.tags.get("prefect.flow_run_id", "none")
        return f"{self.places.prefect}/runs/flow-run/{flow}" if self.places.prefect and flow != "none" else ""

    def name(self, model: Stage) -> str:
        """A model's id; where several recipes or runs are looked at, with what tells them apart."""
        maker = self.book.pipelines.get(model.maker)
        alike = self._alike.get(model.id, 0)
        if maker is None or (alike < 2 and len(self._recipes) < 2):
            return model.id
        return (
            f"{maker.recipe}: {model.id}" if alike < 2 else f"{maker.recipe} {model.address.rpartition('-')[2][:4]}: {model.id}"
        )


def many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def pill(state: str) -> html.Span:
    return html.Span([html.Span(STATES.get(state, "?"), **{"aria-hidden": "true"}), f" {state}"], className=f"pill {state}")


def crown(sight: Sight, model: Stage) -> Any:
    """A mark with the aliases of a model; nothing where it has none."""
    aliases = sight.aliases(model)
    return html.Span(f"★ {aliases}", className="pill crown") if aliases else ""


def gate(text: str) -> Any:
    """The verdict of a model's gates, and what failed; nothing where it was not judged."""
    word = text.partition(":")[0]
    if not text:
        return ""
    return html.Span(
        f"{GATE_SIGNS.get(word, '?')} {text}", className="gate " + {"passes": "good", "fails": "bad"}.get(word, "")
    )


def chart(id: str, figure: Any, label: str) -> dcc.Graph:
    return dcc.Graph(
        id=id, figure=figure, config=CONFIG, className="chart", responsive=True, style={"height": figure["layout"]["height"]}
    )


def sheet(head: Sequence[Any], rows: Sequence[Sequence[Any]], caption: str = "", classes: str = "") -> html.Div:
    """A table; wide ones scroll by themselves, not the page. Rows begin with what they are about."""
    header = html.Thead(html.Tr([html.Th(one, scope="col") for one in head]))
    body = [html.Tr([html.Th(row[0], scope="row"), *(html.Td(cell) for cell in row[1:])]) for row in rows]
    told = [html.Caption(caption)] if caption else []
    return html.Div(html.Table([*told, header, html.Tbody(body)], className=f"sheet {classes}"), className="wide", tabIndex="0")


def empty(text: str, more: Any = "") -> html.Div:
    return html.Div([html.P(text), html.P(more)], className="empty", role="status")


def gone(sight: Sight, what: str, more: Any) -> html.Div:
    """Of what a link names and MLflow does not."""
    why = "it may have been deleted." if sight.reading.complete else "not all of it is read yet."
    return empty(f"MLflow has no such {what}; {why}", more)


def links(*pairs: tuple[str, str]) -> list[Any]:
    """To pages elsewhere; of what has no address nothing."""
    return [
        html.A(f"{name} ↗", href=address, target="_blank", rel="noopener", className="out")
        for name, address in pairs
        if address
    ]
