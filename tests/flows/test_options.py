"""Options mean what they say: one that takes one value is given once, of whichever command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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


def test_files_are_utf8_whatever_the_locale_says(tmp_path):
    """A template with an accent was read as two other letters, or not at all; the terminal still gets what it can show."""
    (tmp_path / "text").write_bytes("é".encode())
    script = (
        "from pathlib import Path; from flows import cli\n@cli.app.command()\n"
        f"def read(): print(len(Path({str(tmp_path / 'text')!r}).read_text()), chr(233))\ncli.main()"
    )
    given = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-c", script, "read"], env=given, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 ?\n", b"")


@pytest.mark.parametrize("columns", ["0", "wide", "-3"])
def test_a_terminal_of_no_width_is_none(columns):
    """Some programs set it to 0, and every table was empty."""
    script = "from flows.options import console; console.print('seen')"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "COLUMNS": columns}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "seen\n"


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_was_closed_is_open_again_for_no_other_file_to_get_its_number(closed, tmp_path):
    script = (
        "from flows.options import console, errors; import os, sys; console.print('x'); errors.print('x'); sys.stdin\n"
        f"with open({str(tmp_path / 'kept')!r}, 'w') as file: file.write(os.readlink('/proc/self/fd/{closed}'))"
    )
    command = f'exec {closed}>&-; exec {sys.executable} -c "$0"'
    done = subprocess.run(["bash", "-c", command, script], capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "kept").read_text()) == (0, "/dev/null"), done.stderr


def test_a_directory_that_was_removed_under_the_shell_is_named_as_that(tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path / 'gone'}; rmdir ../gone; exec {sys.executable} -m flows.cli schema prune"
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "winnow: the directory that this shell is in was removed; cd to one that is there\n"


@pytest.mark.parametrize("group", [(), ("law",)], ids=" ".join)
def test_a_command_that_there_is_not_is_refused_with_those_there_are_and_none_is_help_alone(group, capsys):
    assert winnow(*group, "plna") == 2
    (line,) = capsys.readouterr().err.splitlines()
    there = [path[len(group)] for path, _ in commands(typer.main.get_command(cli.app)) if path[: len(group)] == group]
    assert line == f"winnow: no command 'plna'; choose one of {', '.join(dict.fromkeys(there))}"
    assert winnow(*group) == 2
    said = capsys.readouterr()
    assert "Usage: " in said.out and said.err == ""
