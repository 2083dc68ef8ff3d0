"""The pages in every state, and as one file; the reading asks MLflow in pages; nothing of the dashboard writes."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plotly.io.json import to_json_plotly

import dashboards
from dashboards import shell
from dashboards.app import PAGES, make_app, nowhere
from dashboards.charts import label, waterfall_figure
from dashboards.choice import Choice
from dashboards.layers import LAYERS
from dashboards.pages.pareto import hovered
from dashboards.pages.table import as_csv
from dashboards.pareto import Point
from dashboards.plane import pareto_figure
from dashboards.reading import FIRST_PAGE, PAGE, Reading, read
from dashboards.sight import Places, Sight
from dashboards.static import everything, render
from tests.dashboards.books import Nowhere, book, line, pipeline, sight, stage
from tests.dashboards.test_choosing import NUMBERS

CLAIM = {
    "says": "slower is better",
    "metric": "perplexity",
    "groups": {
        "slow": {"mean": 60.0, "std": 0.5, "values": {"0": 60.0}},
        "fast": {"mean": 61.0, "std": 0.4, "values": {"0": 60.6, "1": 61.4}},
    },
    "holds": True,
    "clear": False,
    "verdict": "holds, within noise",
}
SPARSITY = {f"model.layers.{block}.mlp.up_proj.weight": 0.5 for block in range(3)}
FILES = {
    ("p", "claims.json"): json.dumps([CLAIM]),
    ("prune", LAYERS): json.dumps({"sparsity": SPARSITY, "error": {"block.0": 0.1}}),
}
TRAINED = {**NUMBERS, "pretrain": {**NUMBERS["pretrain"], "training_tokens": 20.0}}
STATES = {
    "empty": book(),
    "one": book(pipeline(tags={"winnow.claims": "1 of 1 hold"}), *line(numbers=TRAINED)),
    "running": book(
        pipeline(status="RUNNING"), stage("prepare", "d"), stage("pretrain", "a", "prepare/plain-d", status="RUNNING", loss=4.0)
    ),
    "failed": book(pipeline(status="FAILED"), stage("pretrain", "a", status="FAILED")),
    "no models": book(pipeline(), stage("prepare", "d")),
    "two": book(
        pipeline(), pipeline("q", "other"), *line("0", numbers=TRAINED), *line("1", "q", NUMBERS, prune={"sparsity": "0.6"})
    ),
}


def text(part: Any) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", render(part)).split())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "query", ["", "?find=nosuch", "?recipe=nosuch", "?rows=runs&model=prune0&pick=quantize0,quantize1,prune0"]
)
def test_every_page_has_something_to_say_in_every_state(state, page, query):
    assert PAGES[page][1](sight(STATES[state], query, files=FILES))


def test_models_of_different_data_are_not_compared_without_a_word():
    other = [stage("prepare", "e"), stage("pretrain", "f", "prepare/plain-e", "q", **NUMBERS["pretrain"])]
    known = book(pipeline(), pipeline("q", "other"), *line(numbers=NUMBERS), *other)
    warned = "Models of 2 different data: perplexities of different texts or tokenizers do not compare. Choose a recipe, or"
    assert warned in text(PAGES[""][1](sight(known)))
    assert "different data" not in text(PAGES[""][1](sight(known, "?recipe=other")))


def test_what_is_missing_is_said():
    assert "MLflow has no run of a recipe yet" in text(PAGES[""][1](sight(STATES["empty"])))
    assert "No run of 1 fits this choice" in text(PAGES[""][1](sight(STATES["one"], "?recipe=nosuch")))
    assert "Running: tiny; this page follows" in text(PAGES[""][1](sight(STATES["running"])))


def test_models_are_compared_by_what_differs():
    told = text(
        PAGES["compare"][1](
            sight(
                STATES["two"],
                "?pick=quantize0,quantize1,prune0&base=prune0",
                files={("prune0", LAYERS): FILES["prune", LAYERS]},
            )
        )
    )
    assert "prune.sparsity — 0.6" not in told and "recover" in told
    assert (
        "perplexity 70 63 -10.0 %" in told
        and "Error that a stage left, by block"
        in text(PAGES["model"][1](sight(STATES["one"], "?model=prune", files=FILES))) + told
    )


def test_a_day_that_is_none_is_said_and_chooses_nothing():
    told = text(shell.known(sight(STATES["one"], "?since=2026-13-01&until=2030-01-01")))
    assert told == "1 run, 4 models from: 2026-13-01 is no day, as 2026-11-01 is"


def test_a_claim_stands_with_its_numbers_and_its_verdict():
    told = text(PAGES["claims"][1](sight(STATES["one"], files=FILES)))
    assert (
        "slower is better" in told
        and "slow: 60 (1)" in told
        and "fast: 61 ± 0.4 (2)" in told
        and "~ holds, within noise" in told
    )


def test_the_csv_has_a_row_a_model_with_every_digit_and_its_address():
    header, *rows = as_csv(sight(STATES["one"], "?columns=perplexity,bytes")).splitlines()
    assert header == "model,state,recipe,method,gates,alias,address,mlflow_run,perplexity,bytes"
    assert rows[-1] == "quantize,finished,tiny,plain,,,quantize/plain-quantize,quantize,63.0,2500000.0" and len(rows) == 4


def test_a_cell_that_a_spreadsheet_would_run_is_text_and_names_keep_their_commas():
    known = book(
        pipeline(recipe='=HYPERLINK("http://x")'),
        *line(numbers=NUMBERS),
        pipeline("q", 'a, "b" ±'),
        stage("prune", "x", maker="q"),
    )
    rows = {row["mlflow_run"]: row["recipe"] for row in csv.DictReader(io.StringIO(as_csv(sight(known))))}
    assert rows["prune"] == '\'=HYPERLINK("http://x")' and rows["x"] == 'a, "b" ±'
    assert "'=HYPERLINK" in as_csv(sight(known, "?rows=runs"))


def test_numbers_that_are_none_are_shown_as_what_they_are_and_the_csv_has_them():
    broken = {**NUMBERS, "quantize": {"perplexity": math.nan, "bytes": math.inf}}
    known = sight(book(pipeline(), *line(numbers=broken)))
    (row,) = [row for row in PAGES["table"][1](known)[-1].rowData if row["id"] == "quantize"]
    assert row["broken"] == {"perplexity": "NaN", "bytes": "∞", "over_dense": "NaN"} and "bytes" not in row["numbers"]
    assert "nan" in as_csv(known).splitlines()[-1]
    for page in PAGES.values():
        page[1](known)
    assert json.dumps(json.loads(to_json_plotly(PAGES[""][1](known)[1].figure)), allow_nan=False)
    largest = SimpleNamespace(value=1.7976931348623157e308, step=1)
    reading = Reading("sqlite://", SimpleNamespace(get_metric_history=lambda run, name: [largest]))
    assert reading.curves(stage("pretrain", "a", training_tokens=1.0))["loss"] == [(1, math.inf)]


def test_what_a_link_names_and_mlflow_does_not_is_said():
    known = STATES["two"]
    assert "no such run; it may have been deleted" in text(PAGES["waterfall"][1](sight(known, "?pipeline=nosuch")))
    assert "no such model; it may have been deleted" in text(PAGES["model"][1](sight(known, "?model=nosuch")))
    told = text(PAGES["compare"][1](sight(known, "?pick=quantize0,prune0,nosuch")))
    assert "Of 3 picked models MLflow has 1 no more" in told
    assert "1 no more, or they are not read yet." in text(PAGES["compare"][1](sight(known, "?pick=quantize0,nosuch")))
    assert "There is no page nosuch here" in text(nowhere("nosuch", sight(known)))
    assert "perplexity" in as_csv(sight(known, "?columns=nosuch'];alert(1)//")).splitlines()[0]


def test_the_line_of_what_is_good_enough_has_its_name_beside_it_on_a_log_axis_too():
    for values, place in (((60.0, 70.0), 65.0), ((6.0, 700.0), math.log10(65))):
        found = [Point(stage("prune", f"m{value}"), 1.0, value) for value in values]
        figure = pareto_figure(found, found[:1], ("bytes", "perplexity"), {}, {"m6.0": "a", "m60.0": "a"}, limit=(65.0, "near"))
        assert figure["layout"]["shapes"][0]["y0"] == 65.0 and figure["layout"]["annotations"][0]["y"] == pytest.approx(place)


def test_sizes_far_apart_are_told_in_their_units():
    """Plotly writes the ticks of a log axis as it writes a hovered value: 1.000e+6B, where that has a format of its own."""
    found = [Point(stage("prune", f"m{size}"), size, 60.0) for size in (1e6, 2e8)]
    axis = pareto_figure(found, found[:1], ("bytes", "perplexity"), {}, {"m1000000.0": "a"})["layout"]["xaxis"]
    assert axis["type"] == "log" and axis["exponentformat"] == "SI" and "hoverformat" not in axis


def test_a_sign_that_stands_for_two_kinds_is_told_once():
    one = {"perplexity": 60.0, "bytes": 1e6}
    loaded, trained = stage("load", "a", **one), stage("pretrain", "b", **{**one, "perplexity": 50.0, "bytes": 2e6})
    told = text(PAGES[""][1](sight(book(pipeline(), loaded, trained))))
    assert told.count("●") == 1 and re.search("● (load, pretrain|pretrain, load)", told)


def test_without_a_choice_the_waterfall_is_of_the_newest_run_that_has_one():
    early = line("0", "q", NUMBERS)
    known = book(pipeline("p", "broken", "FAILED", reused={"pretrain": "pretrain0"}), pipeline("q", "whole"), *early)
    told = text(PAGES["waterfall"][1](sight(known)))
    assert told.startswith("whole") and "prune lost the most" in told


def test_names_are_drawn_as_text_and_long_ones_by_their_ends():
    assert label("<b>x</b>") == "&lt;b&gt;x&lt;/b&gt;" and label("recover-" + "x" * 200 + "-seed0") == "recover…xx-seed0"
    two = [("recover-" + "x" * 200 + f"-{kind}" + "y" * 9, {"perplexity": 1.0}) for kind in "ab"]
    assert len(waterfall_figure(two, ["perplexity"]).data[0].x) == 3  # though both are shortened to the same


class Balanced(HTMLParser):
    """Which tags were opened and not closed, of those that have to be."""

    LOOSE = ("meta", "tr", "th", "td", "br", "!doctype", "html", "thead", "tbody")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open += [] if tag in self.LOOSE else [tag]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.LOOSE:
            assert self.open.pop() == tag


def test_the_file_needs_nothing_else_and_says_what_the_pages_say():
    known = STATES["two"]
    written = everything(Nowhere(known), Places("/", "https://mlflow.example"))
    parser = Balanced()
    parser.feed(written)
    assert parser.open == []
    assert "reading" not in text(shell.known(Sight(known, Choice(), Nowhere(known))))
    outside = re.sub(r"<script[^>]*>.*?</script>", "", written, flags=re.S)
    assert not re.search(r"(src|url\()\s*=?\s*['\"]?https?:", outside) and "prune lost the most" in outside
    assert "href='https://mlflow.example/#/experiments/" in outside and outside.count("<a id=") == 8
    assert len(written) < 3_000_000


def test_names_from_outside_are_text_and_no_markup():
    evil = "<img src=x onerror=alert(1)>"
    known = book(
        pipeline(recipe=evil), *line(numbers=NUMBERS), stage("prune", "x", gates=f"fails: {evil}", perplexity=1.0, bytes=1.0)
    )
    written = everything(Nowhere(known), Places())
    assert "<img" not in written


def test_mlflow_is_asked_in_pages_and_then_only_for_what_changed():
    asked = []

    class Client:
        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7")

        def search_runs(
            self, experiments: list[str], which: str, view: int, size: int, order: list[str], token: str | None
        ) -> Any:
            asked.append((which, size, token))
            left = int(token or 2500) - size
            page = Page(map(_run, range(max(left, 0), left + size)))
            page.token = str(left) if left > 0 and not which else None
            return page if not which else Page([_run(5)])

        def search_registered_models(self, **which: Any) -> Any:
            return Page()

    reading = Reading("sqlite://", Client())
    reading.refresh()
    assert len(reading.book.pipelines) == 2500 and reading.complete and reading.version == 10
    assert [size for _, size, _ in asked] == [FIRST_PAGE] + [PAGE] * 8
    asked.clear()
    reading.refresh()
    assert len(asked) == 3 and all(which for which, _, _ in asked) and reading.version == 10  # nothing changed


def test_what_a_registry_keeps_among_a_runs_parameters_is_no_field_of_its_recipe():
    run = _run(1)
    run.data.tags = {"winnow.address": "prune/wanda-a", "mlflow.parentRunId": "p"}
    run.data.params = {"sparsity": "0.5", "winnow.moves.tiny.champion.1": ">1 36e10498fe54"}
    assert read(run).params == {"sparsity": "0.5"}


def test_what_was_deleted_is_gone_once_all_is_read_again():
    class Client:
        there = 2

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7")

        def search_runs(self, experiments: list[str], which: str, *rest: Any) -> Any:
            return Page() if which else Page(map(_run, range(self.there)))

        def search_registered_models(self, **which: Any) -> Any:
            return Page()

    reading = Reading("sqlite://", Client())
    reading.refresh()
    Client.there = 1
    reading.refresh()
    assert len(reading.book.pipelines) == 2
    reading.again()
    assert "reading all again" in text(shell.known(Sight(reading.book, Choice(), reading)))
    reading.refresh()
    assert len(reading.book.pipelines) == 1 and not reading.anew and reading.version == 4


def test_the_aliases_of_a_registry_are_read_with_the_runs_and_a_version_once():
    class Client:
        holders, asked, kind = {"champion": "3"}, 0, "wanda"

        def get_experiment_by_name(self, name: str) -> Any:
            return SimpleNamespace(experiment_id="7")

        def search_runs(self, *rest: Any) -> Any:
            return Page()

        def search_registered_models(self, **which: Any) -> Any:
            others = SimpleNamespace(name="theirs", aliases={"live": "1"})
            return Page([SimpleNamespace(name="tiny", aliases=self.holders), others])

        def get_model_version(self, name: str, version: str) -> Any:
            Client.asked += 1
            return SimpleNamespace(tags={"winnow.address": f"prune/{self.kind}-{version}"} if name == "tiny" else {})

    reading = Reading("sqlite://", Client())
    reading.refresh()
    assert reading.book.aliases == {"prune/wanda-3": ("champion of tiny, version 3",)}
    version = reading.version
    reading.refresh()
    assert (Client.asked, reading.version) == (2, version)  # nothing moved
    Client.holders = {"champion": "4", "shadow": "4"}
    reading.refresh()
    assert reading.book.aliases == {"prune/wanda-4": ("champion of tiny, version 4", "shadow of tiny, version 4")}
    assert reading.version == version + 1
    Client.kind = "magnitude"  # somebody deleted the registered model, and a run registered another under its name
    reading.again()
    reading.refresh()
    assert list(reading.book.aliases) == ["prune/magnitude-4"]


@pytest.mark.parametrize("page", ["", "table", "compare", "model"])
def test_wherever_models_are_listed_the_champion_is_marked(page):
    told = "champion of tiny, version 3"
    crowned = replace(STATES["one"], aliases={STATES["one"].stages["quantize"].address: (told,)}, kept={})
    for known, marked in ((crowned, True), (STATES["one"], False)):
        seen = sight(known, "?model=quantize&pick=quantize,prune")
        assert (told in to_json_plotly(PAGES[page][1](seen))) is marked
    assert "★ champion of tiny, version 3" in everything(Nowhere(crowned), Places("#"))
    assert told in as_csv(sight(crowned)) and told not in as_csv(sight(STATES["one"]))


def test_an_mlflow_that_is_away_is_told_of_and_asked_again():
    class Client:
        away = True

        def get_experiment_by_name(self, name: str) -> None:
            if self.away:
                raise ConnectionError("MLflow at http://x: it does not answer")

    reading = Reading("http://x", Client())
    reading.step()
    assert "it does not answer" in text(shell.known(Sight(reading.book, Choice(), reading)))
    Client.away = False
    reading.step()
    assert reading.trouble == "" and reading.version == 2 and reading.complete


class Page(list):
    token = None


def _run(number: int) -> Any:
    info = SimpleNamespace(run_id=f"r{number}", run_name="tiny", status="FINISHED", start_time=number, end_time=number + 1)
    return SimpleNamespace(info=info, data=SimpleNamespace(tags={"winnow.recipe": "tiny"}, params={}, metrics={}))


@pytest.fixture
def web():
    return lambda prefix="/": make_app(Nowhere(STATES["one"]), Places(prefix)).server.test_client()


def test_it_answers_to_loopback_names_alone_and_takes_no_order(web):
    client = web()
    assert client.get("/health", headers={"Host": "127.0.0.1:8050"}).status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert (
        client.get("/", headers={"Host": "localhost:8050"}).headers["Content-Security-Policy"].startswith("default-src 'none'")
    )
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/table.csv", headers={"Host": "localhost"}).status_code == 405


def test_behind_a_proxy_it_lives_below_its_path_whether_the_proxy_cuts_it_off_or_not(web):
    client = web("/team/winnow/")
    for path in ("/team/winnow/table.csv", "/table.csv"):
        assert client.get(path, headers={"Host": "team.example"}).text.startswith("model,state")
    page = client.get("/team/winnow/", headers={"Host": "team.example"}).text
    assert re.findall(r"(?:src|href)=\"(?!/team/winnow/)", page) == []


@pytest.mark.parametrize(("path", "name"), [("", "choose"), ("/", "choose"), ("/table", "table"), ("/nosuch", "nosuch")])
def test_a_page_is_named_by_the_rest_of_the_address_whether_it_ends_in_a_slash_or_not(web, path, name):
    asked = {"url.pathname": f"/team/winnow{path}", "url.search": "", "version.data": 0}
    inputs = [{"id": one.partition(".")[0], "property": one.partition(".")[2], "value": value} for one, value in asked.items()]
    (output,) = [
        one for one in make_app(Nowhere(STATES["one"]), Places("/team/winnow/")).callback_map if "page.children" in one
    ]
    state = [{"id": "shape", "property": "data", "value": None}]
    asked = {"output": output, "inputs": inputs, "state": state, "changedPropIds": ["url.pathname"]}
    asked["outputs"] = [
        dict(zip(("id", "property"), one.rsplit(".", 1), strict=True)) for one in output.strip(".").split("...")
    ]
    told = web("/team/winnow/").post("/team/winnow/_dash-update-component", json=asked, headers={"Host": "team.example"})
    assert f'"page-{name}"' in told.text


def test_nothing_of_the_dashboard_writes_to_mlflow():
    """But for the files that a run gives itself, by its own tracking."""
    writes = re.compile(r"(log|set|create|delete|update|rename|restore|link|finalize|transition)_\w+")
    for path in Path(dashboards.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and writes.fullmatch(node.func.attr):
                assert ast.unparse(node.func.value).split(".")[0] in ("axes", "figure", "right"), (
                    f"{path.name}: {node.func.attr}"
                )


def test_of_many_points_one_that_is_hovered_says_what_tells_it_from_its_neighbour():
    every = [
        one for number in range(301) for one in line(str(number), numbers=_numbers(number), prune={"sparsity": f"0.{number}"})
    ]
    many = sight(book(pipeline(), *every), "?show=final")
    assert (
        hovered(many, "quantize7")
        == "tiny quan: quantize other than its neighbour tiny quan: quantize: prune.sparsity: 0.6 → 0.7"
    )
    assert hovered(sight(STATES["two"]), "quantize0") == ""  # its hover says so


def _numbers(number: int) -> dict[str, dict[str, float]]:
    return {"quantize": {"perplexity": 60 + number, "bytes": 1e6 * (400 - number)}}
