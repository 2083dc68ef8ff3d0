"""Options mean what they say: one that takes one value is given once, of whichever command."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import typer

from flows import cli
from tests.flows.command import winnow


def commands(command, *path: str) -> Iterator[tuple[tuple[str, ...], object]]:
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


OPTIONS = [
    (*path, option.opts[0])
    for path, command in commands(typer.main.get_command(cli.app))
    for option in command.params
    if option.param_type_name == "option" and not option.is_flag and not option.multiple
]


@pytest.mark.parametrize("words", OPTIONS, ids=" ".join)
def test_an_option_of_one_value_given_twice_is_refused(words, capsys):
    *path, option = words
    assert winnow(*path, option, "1", option, "2") == 2
    assert f"{option} is given twice" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["dashboard", "--export", "{}"], "--export"),
        (["claims", "quickstart", "--page", "{}"], "--page"),
        (["law", "fit", "nosuch", "--output", "{}"], "--output"),
        (["law", "fit", "nosuch", "--plot", "{}"], "--plot"),
    ],
)
def test_a_file_that_could_not_be_written_is_refused_before_any_work(arguments, option, tmp_path, capsys):
    for name, said in (
        ("none/a.html", f"there is no folder {tmp_path / 'none'}"),
        ("", f"{tmp_path} is a folder; name a file"),
    ):
        assert winnow(*(word.format(tmp_path / name) for word in arguments)) == 2
        told = capsys.readouterr().err
        assert option in told and said in told and told.count("\n") == 1


def test_a_dashboard_on_the_port_of_another_program_is_refused_in_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert winnow("dashboard", "--port", str(port)) == 2
    assert capsys.readouterr().err == f"winnow: --port: another program listens on {port}; choose another, or leave it out\n"
