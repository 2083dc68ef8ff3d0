"""Table: every chosen model or run with its numbers: sort, filter, choose columns, tick what is to be compared, take it away
as CSV."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from typing import Any

import dash_ag_grid as ag
from dash import dcc, html

from dashboards.book import Pipeline, Stage
from dashboards.numbers import base, better, is_sound, metric, rank, shown, title
from dashboards.pages.pareto import nothing
from dashboards.sight import STATES, Sight, many

DEFAULT = ("perplexity", "over_dense", "accuracy", "task_accuracy", "sparsity", "bytes", "decode_tokens_per_second", "seconds")
MODEL_COLUMNS = ("model", "state", "recipe", "method", "gates", "alias")
RUN_COLUMNS = ("run", "state", "recipe", "models", "gates", "claims", "seconds", "started", "commit")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
LONG = 104  # pixels of a column that "990.41 kB" or "18.18 tok/s" fits into
NEVER = ("evaluate", "tokens", "learning_rate", "gradient_norm")


def page(sight: Sight) -> list[Any]:
    if not sight.pipelines or (sight.choice.rows == "models" and not sight.models):
        return [nothing(sight)]
    head = [
        html.Span("show"),
        *(
            html.B(name) if sight.choice.rows == name else dcc.Link(name, href=sight.page("table", rows=name))
            for name in ("models", "runs")
        ),
        html.A("CSV", href=sight.page("table.csv"), download="winnow.csv", className="button"),
        dcc.Link("Compare", href=sight.page("compare"), id="to-compare", className="button"),
        html.Span(_count(sight), id="count", role="status"),
    ]
    return [html.Div(head, className="head"), *(_columns(sight) if sight.choice.rows == "models" else []), grid(sight)]


def _count(sight: Sight) -> str:
    picked = f", {len(sight.choice.pick)} picked" if sight.choice.pick else ""
    return f"{many(len(sight.models), 'model')} of {many(len(sight.pipelines), 'run')}{picked}"


def _columns(sight: Sight) -> list[Any]:
    known = sorted((name for name in sight.metrics if base(name) not in NEVER), key=rank)
    options = [{"label": title(name), "value": name, "title": metric(name).meaning} for name in known]
    told = list(columns(sight))
    return [
        html.Details(
            [
                html.Summary(f"columns ({len(told)} of {len(known)})"),
                dcc.Checklist(
                    id={"key": "columns", "told": ",".join(told)}, options=options, value=told, className="columns", inline=True
                ),
            ],
            open=bool(sight.choice.columns),
        )
    ]


def columns(sight: Sight) -> tuple[str, ...]:
    """The chosen metrics that are there, else those that matter."""
    if chosen := tuple(name for name in sight.choice.columns if name in sight.metrics):
        return chosen
    wanted = dict.fromkeys([sight.choice.y, *DEFAULT, sight.choice.x])
    return tuple(sorted((name for name in wanted if name in sight.metrics), key=rank))


def grid(sight: Sight) -> ag.AgGrid:
    models = sight.choice.rows == "models"
    rows = [_model(sight, model) for model, _ in sight.models] if models else [_run(sight, one) for one in sight.pipelines]
    return ag.AgGrid(
        id={"grid": sight.choice.rows},
        rowData=rows,
        columnDefs=_model_columns(sight) if models else _run_columns(sight),
        defaultColDef={
            "sortable": True,
            "resizable": True,
            "filter": True,
            "floatingFilter": True,
            "suppressHeaderFilterButton": True,
            "suppressFloatingFilterButton": True,
            "minWidth": 84,
            "flex": 1,
            "wrapHeaderText": True,
            "autoHeaderHeight": True,
        },
        selectedRows={"ids": list(sight.choice.pick)} if models else {"ids": list(sight.choice.run)},
        getRowId="params.data.id",
        dashGridOptions={
            "rowSelection": {"mode": "multiRow", "enableClickSelection": False, "headerCheckbox": False},
            "animateRows": False,
            "suppressColumnVirtualisation": True,
            "theme": {"function": "winnowTheme(themeQuartz)"},
            "tooltipShowDelay": 300,
        },
        className="grid",
        style={"height": "calc(100vh - 300px)", "minHeight": "320px"},
    )


def _model_columns(sight: Sight) -> list[dict[str, Any]]:
    name = {"field": "model", "headerName": "model", "cellRenderer": "WinnowLink", "tooltipField": "address"}
    told: list[dict[str, Any]] = [
        {**name, "minWidth": 110, "flex": 1.5},
        {"field": "state", "headerName": "state", "cellRenderer": "WinnowState", "minWidth": 112, "maxWidth": 124},
        {"field": "recipe", "headerName": "recipe", "tooltipField": "recipe", "minWidth": 104},
        {"field": "method", "headerName": "method", "tooltipField": "method", "minWidth": 104},
    ]
    told += [{"field": name, **_number(name)} for name in columns(sight)]
    if any(model.gates for model, _ in sight.models):
        told.append({"field": "gates", "headerName": "gates", "tooltipField": "gates"})
    if any(model.address in sight.book.aliases for model, _ in sight.models):
        told.append({"field": "alias", "headerName": "alias", "tooltipField": "alias", "minWidth": 130})
    return [*told, *_elsewhere_column(sight)]


def _number(name: str) -> dict[str, Any]:
    """A number as the server writes it elsewhere, sorted by its value."""
    return {
        "colId": name,
        "headerName": title(name),
        "headerTooltip": metric(name).meaning,
        "valueGetter": {"function": f"params.data.numbers['{name}']"},
        "valueFormatter": {"function": f"winnowNumber(params.value, '{metric(name).unit}', params.data.broken['{name}'])"},
        "filter": "agNumberColumnFilter",
        "type": "rightAligned",
        "minWidth": max(LONG if metric(name).unit in ("token/s", "B") else 84, *map(_room, title(name).split())),
        "sortingOrder": ["desc", "asc", None] if better(name) > 0 else ["asc", "desc", None],
    }


def _room(word: str) -> int:
    """Pixels of a column whose header has this word, which is not to be broken."""
    return 36 + 7 * len(word)


def _run_columns(sight: Sight) -> list[dict[str, Any]]:
    shapes: dict[str, dict[str, Any]] = {
        "run": {"cellRenderer": "WinnowLink", "tooltipField": "id"},
        "state": {"cellRenderer": "WinnowState"},
        "models": {"filter": "agNumberColumnFilter", "type": "rightAligned"},
        "seconds": {
            "headerName": "time",
            "valueFormatter": {"function": "winnowNumber(params.value, 's')"},
            "type": "rightAligned",
        },
        "started": {"sort": "desc", "minWidth": 150, "cellDataType": "text"},
        "gates": {"maxWidth": 110},
    }
    return [*({"field": name, "headerName": name, **shapes.get(name, {})} for name in RUN_COLUMNS), *_elsewhere_column(sight)]


def _elsewhere_column(sight: Sight) -> list[dict[str, Any]]:
    linked = sight.places.mlflow or sight.places.prefect
    column = {"field": "pages", "headerName": "elsewhere", "cellRenderer": "WinnowLinks", "sortable": False, "filter": False}
    return [{**column, "cellDataType": False, "minWidth": 96 if not sight.places.prefect else 150}] if linked else []


def _model(sight: Sight, model: Stage) -> dict[str, Any]:
    maker, numbers, names = sight.book.pipelines.get(model.maker), sight.book.numbers(model), columns(sight)
    state = sight.book.state(model)
    if maker is None or maker.run not in sight.chosen:
        state = "cached" if state == "finished" else state
    return {
        "id": model.run,
        "model": model.id,
        "href": sight.page("model", model=model.run),
        "state": state,
        "sign": STATES.get(state, "?"),
        "recipe": maker.recipe if maker else "",
        "method": model.method,
        "address": model.address,
        "gates": model.gates,
        "alias": sight.aliases(model),
        "numbers": {name: round(numbers[name], 12) for name in names if is_sound(name, numbers)},
        "broken": {name: shown(name, numbers[name]) for name in names if name in numbers and not is_sound(name, numbers)},
        "pages": _elsewhere(sight, model.run, maker),
    }


def _elsewhere(sight: Sight, run: str, maker: Pipeline | None) -> list[dict[str, str]]:
    found = {"MLflow": sight.mlflow(run), "Prefect": sight.prefect(maker) if maker else ""}
    return [{"name": name, "href": address} for name, address in found.items() if address]


def _run(sight: Sight, one: Pipeline) -> dict[str, Any]:
    models = sight.book.models_of(one.run)
    return {
        "id": one.run,
        "run": one.run[:8],
        "href": sight.page("waterfall", pipeline=one.run, model=""),
        "state": one.state,
        "sign": STATES.get(one.state, "?"),
        "recipe": one.recipe,
        "models": len(models),
        "gates": one.tags.get("winnow.gates", ""),
        "claims": one.tags.get("winnow.claims", ""),
        "seconds": one.seconds,
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(one.started / 1000)),
        "commit": one.tags.get("winnow.git_commit", "")[:10],
        "pages": _elsewhere(sight, one.run, one),
    }


def as_csv(sight: Sight) -> str:
    """What the table shows, with every digit, and the artifact's address, by which winnow export finds it."""
    out = io.StringIO()
    writer = csv.writer(out)
    if sight.choice.rows != "models":
        writer.writerow([*RUN_COLUMNS, "id"])
        writer.writerows(
            _inert(row[name] for name in (*RUN_COLUMNS, "id")) for row in (_run(sight, one) for one in sight.pipelines)
        )
        return out.getvalue()
    names = columns(sight)
    writer.writerow([*MODEL_COLUMNS, "address", "mlflow_run", *names])
    for model, numbers in sight.models:
        row = _model(sight, model)
        cells = _inert(row[name] for name in (*MODEL_COLUMNS, "address", "id"))
        writer.writerow([*cells, *(numbers.get(name, "") for name in names)])
    return out.getvalue()


def _inert(cells: Iterable[Any]) -> list[Any]:
    """Text that a spreadsheet would take for a formula is marked as text."""
    return [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in cells]
