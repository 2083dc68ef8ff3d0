"""What the commands share: their common arguments, the two consoles, and the store that a profile names."""

from __future__ import annotations

import codecs
import locale
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from cluster.store.artifacts import CorruptArtifact

if TYPE_CHECKING:
    from cluster.store.artifacts import Record
    from cluster.store.local import Store

PATHS = ("_HOME", "_CACHE", "_DIR", "_FILE", "_BUNDLE", "_PATH")  # what variables that name one local path end in
OURS = ("WINNOW_", "HF_", "AWS_", "RAY_AUTH_", "TORCH_EXTENSIONS_")  # and begin with, where servers or jobs read them
LOG_WIDTH = 140  # characters of a line where no terminal sets a bound


class _Once(TyperCommand):
    """A command that refuses an option given twice where one value is taken (click would take the last)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            valued = not getattr(option, "is_flag", True) and not option.multiple  # of an argument nothing is known
            if valued and given.count(option) > 1:
                raise ValueError(f"{option.opts[0]} is given twice, and takes one value; give it once")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Of a damaged artifact the line that refuses it says how to mend it, in the store that was asked for."""
        try:
            return super().invoke(ctx)
        except CorruptArtifact as error:
            if not error.aside:
                error.args = (f"{error}; {remedy(error.address, ctx.params.get('profile', 'local'))}",)
            raise


class _Group(TyperGroup):
    """A group that says what it has to who names another command."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise ValueError(f"no command {args[0]!r}; choose one of {', '.join(self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class Commands(typer.Typer):
    """A group of such commands."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(cls=_Group, **kwargs)

    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, **{"cls": _Once, **kwargs})


def remedy(address: str, profile: str) -> str:
    """How to be rid of a damaged artifact; in another store one of this address may be sound."""
    where = "" if profile == "local" else f" -p {shlex.quote(profile)}"
    return f"to mend: winnow discard {address}{where}, then run its recipe again"


class Unread(SystemExit):
    """Nobody reads what is printed any more: ``winnow methods | head``."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """As rich does it, who leaves no trace of which pipe broke."""
        try:
            super().on_broken_pipe()
        except SystemExit as end:
            raise Unread(end.code) from None


def _console(stream: TextIO, stderr: bool) -> Console:
    given = os.environ.get("COLUMNS", "")
    columns = int(given) if given.isascii() and given.isdecimal() else 0  # rich takes 0 too, and then shows nothing at all
    if not columns:
        os.environ.pop("COLUMNS", None)
    return _Console(stderr=stderr, width=None if stream.isatty() or columns else LOG_WIDTH)


def _fill_streams() -> None:
    """Open what was closed of standard input, output and error: the next file would get that number, and what a child
    prints would land in it."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


_fill_streams()
console, errors = _console(sys.stdout, stderr=False), _console(sys.stderr, stderr=True)


def settle_locale() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding: recipes, templates, cards and what libraries
    read are UTF-8 whoever reads them, and jobs inherit the mode. The terminal keeps its own."""
    own = locale.getencoding()
    if not sys.flags.utf8_mode and codecs.lookup(own).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", f"{own}:replace")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def settle_environment() -> None:
    """Make relative paths in the environment absolute: servers and jobs inherit it, and run in another directory. Raises
    ValueError where the one that relative paths begin in is gone."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' bars: a stage tells its own progress
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ValueError("the directory that this shell is in was removed; cd to one that is there") from None
    for name, value in os.environ.items():
        if value and name.startswith(OURS) and name.endswith(PATHS):
            os.environ[name] = os.path.abspath(os.path.expanduser(value))


def file_to_write(path: Path | None) -> Path | None:
    """An option's file, refused before any work where it could not be written in the end."""
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; name a file")
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


RecipeArgument = Annotated[str, typer.Argument(help="path of a recipe, or the name of a shipped one")]
ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="where to run: name or path of a profile")]
ArtifactArgument = Annotated[str, typer.Argument(help="address or key, or a unique prefix")]
OnlyOption = Annotated[
    str | None,
    typer.Option("--only", metavar="STAGE", help="this stage and its evaluations alone; what feeds it has to be there already"),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="STAGE", help="what this stage needs, the stage, and the evaluations; nothing after it"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="STAGE.FIELD=VALUE", help="a field of the recipe, such as prune.sparsity=0.6; may be repeated"
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="exit code 1 where a model does not reach what the recipe requires")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]


def store_of(profile: str) -> Store:
    from cluster.profile import load_profile
    from cluster.reach import check_s3
    from cluster.store.url import open_store

    where = load_profile(profile)
    check_s3(where.store)
    return open_store(where.store, Path(where.scratch) / "cache")


def model_of(artifact: str, profile: str) -> tuple[Record, Store]:
    """The one model that is meant, and the store it lies in. Raises ValueError where none is, with models alone to choose
    from."""
    from tasks.stage import STAGES, stage_class

    stages, store = [stage for stage in STAGES if stage_class(stage).yields == "model"], store_of(profile)
    record = store.find(artifact, stages)
    if record.stage not in stages:
        raise ValueError(f"{record.address} is no model; choose what one of {', '.join(stages)} made")
    return record, store
