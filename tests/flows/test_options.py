"""Options mean what they say: one that takes one value is given once, of whichever command."""

from __future__ import annotations

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
