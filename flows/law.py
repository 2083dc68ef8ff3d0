"""``winnow law``: fit the laws of sparse pretraining and of activation to finished runs, and plan a run by the first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.options import Commands, JsonOption, ProfileOption, console, file_to_write, store_of

if TYPE_CHECKING:
    from flows.evidence import LawFile
    from tasks.train.scaling.budget import Outlook

app = Commands(no_args_is_help=True, help="Fit laws of sparse pretraining to finished runs, and plan by them.")

PlotOption = Annotated[Path | None, typer.Option("--plot", callback=file_to_write, help="draw it into this image file")]
IMAGES = (".png", ".pdf", ".svg", ".jpg")
ASSUMPTION = "training FLOPs are 6 x average parameters x tokens (prunable weights; attention and the LM head left out)"


@app.command()
def fit(
    runs: Annotated[list[str], typer.Argument(help="addresses of pretrain artifacts, or recipes all of whose runs are done")],
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", callback=file_to_write, help="keep the law in this file")
    ] = None,
    plot: PlotOption = None,
    resamples: Annotated[int, typer.Option(min=1, help="bootstrap draws of the runs that the band is made of")] = 100,
) -> None:
    """Fit L = E + A N^-alpha + B D^-beta, and say how well average, initial and final N explain the losses."""
    from flows.evidence import gather, study

    _check_plot(plot)
    found = study(gather(runs, store_of(profile)), resamples)
    text = found.model_dump_json(indent=2)
    if output:
        output.write_text(text + "\n")
    if plot:
        _draw_fit(found, plot)
    if as_json:
        print(text)
        return
    console.print(_counts_table(found))
    console.print(found.verdict, highlight=False, soft_wrap=True)


@app.command()
def plan(
    flops: Annotated[float, typer.Option(help="training FLOPs to spend")],
    final_params: Annotated[float, typer.Option(help="prunable weights that live in the end")],
    law: Annotated[Path, typer.Option(help="a file that law fit wrote")] = Path("law.json"),
    max_sparsity: Annotated[float, typer.Option(help="the sparsest run to consider; the paper went to 0.8")] = 0.8,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Size, tokens, sparsity and window with the lowest predicted loss for a budget and a final size."""
    from flows.evidence import read_law
    from tasks.train.scaling import budget

    _check_plot(plot)
    known = read_law(law)
    outlook = budget.plan(known.law, known.resampled, flops, final_params, max_sparsity)
    beyond = known.beyond(outlook.route.average_parameters, outlook.route.tokens)
    if plot:
        _draw_outlook(outlook, plot)
    if as_json:
        print(json.dumps({**asdict(outlook), "extrapolates": beyond, "assumption": ASSUMPTION}))
        return
    console.print(_route_table(outlook))
    console.print(_recipe_line(outlook), highlight=False, soft_wrap=True)
    for line in beyond:
        console.print(f"extrapolated: {line}", highlight=False, style="yellow", soft_wrap=True)
    console.print(ASSUMPTION, highlight=False, soft_wrap=True)


@app.command()
def activation(
    runs: Annotated[list[str], typer.Argument(help="addresses of pretrain artifacts, or recipes all of whose runs are done")],
    profile: ProfileOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Fit how the share of neurons in use changes with tokens, and say what it comes to: runs of one model over more and more
    tokens, each with ``activation_sparsity`` at one ``error``."""
    from flows.evidence import activation as measured
    from tasks.train.scaling.activation import fit as fit_activation

    found = measured(runs, store_of(profile))
    law = fit_activation(*zip(*found.values(), strict=True))
    if as_json:
        print(json.dumps({"law": asdict(law), "runs": found}))
        return
    table = Table(caption=f"mean error {law.mean_absolute_error:.3%} of the neurons", caption_justify="left")
    for title in ("tokens", "in use", "by the law"):
        table.add_column(title, justify="right")
    for tokens, ratio in sorted(found.values()):
        table.add_row(f"{tokens:,.0f}", f"{ratio:.2%}", f"{float(law.ratio(tokens)):.2%}")
    console.print(table)
    told = f"the share of neurons in use {law.trend} with tokens, to {law.limit:.2%}"
    console.print(told, highlight=False, soft_wrap=True)


def _check_plot(path: Path | None) -> None:
    if path and path.suffix.lower() not in IMAGES:
        raise ValueError(f"plot {path}: no such kind of image; choose one of {', '.join(IMAGES)}")


def _counts_table(found: LawFile) -> Table:
    table = Table(caption=f"{len(found.runs)} runs; errors are of the log of the loss", caption_justify="left")
    table.add_column("")
    for count in found.counts:
        table.add_column(f"{count} N", justify="right")
    rows: dict[str, tuple[str, Any]] = {
        "Huber loss": ("{:.3g}", lambda quality: quality.objective),
        "R²": ("{:.4f}", lambda quality: quality.r2),
        "mean error": ("{:.2%}", lambda quality: quality.mean_absolute_error),
        "left-out error": ("{:.2%}", lambda quality: quality.left_out_error),
        **{name: ("{:.4g}", lambda quality, name=name: getattr(quality.law, name)) for name in asdict(found.law)},
    }
    for title, (form, value) in rows.items():
        table.add_row(title, *(form.format(value(quality)) for quality in found.counts.values()))
    return table


def _route_table(outlook: Outlook) -> Table:
    way, (low, high), (least, most) = outlook.route, outlook.loss_band, outlook.sparsity_band
    table = Table(show_header=False)
    for row in (
        ("sparsity", f"{way.sparsity:.1%}", f"90 % band {least:.1%} to {most:.1%}"),
        ("initial parameters", f"{way.initial_parameters:,.0f}", "prunable weights"),
        ("average parameters", f"{way.average_parameters:,.0f}", ""),
        ("final parameters", f"{way.final_parameters:,.0f}", ""),
        ("tokens", f"{way.tokens:,}", f"the dense model would see {way.dense_tokens:,}"),
        ("window", f"{way.start:,} to {way.end:,}", "in tokens: 25 % to 75 % of the compute"),
        ("loss", f"{outlook.loss:.4f}", f"90 % band {low:.4f} to {high:.4f}"),
    ):
        table.add_row(*row)
    return table


def _recipe_line(outlook: Outlook) -> str:
    """The pretrain stage that does it; its ``tokens`` are dense ones."""
    way = outlook.route
    method = f"{{gradual: {{sparsity: {way.sparsity:g}}}}}" if way.sparsity else "dense"
    return f"- pretrain: {{method: {method}, tokens: {way.dense_tokens}}}"


def _draw_fit(found: LawFile, path: Path) -> None:
    from dashboards.figures import fit_errors
    from tasks.train.scaling.law import log_errors

    runs = list(found.runs.values())
    errors = {f"{count} N": log_errors(quality.law, runs, count).tolist() for count, quality in found.counts.items()}
    fit_errors([run.loss for run in runs], errors).savefig(path)


def _draw_outlook(outlook: Outlook, path: Path) -> None:
    from dashboards.figures import loss_over_sparsity

    chosen = (outlook.route.sparsity, outlook.loss)
    loss_over_sparsity(outlook.sparsities, outlook.losses, (outlook.low, outlook.high), chosen).savefig(path)
