"""What the commands share: their common arguments, the two consoles, and the store that a profile names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperCommand

if TYPE_CHECKING:
    from cluster.store.artifacts import Record
    from cluster.store.local import Store

PATHS = ("_HOME", "_CACHE", "_DIR", "_FILE", "_BUNDLE", "_PATH")  # what variables that name one local path end in
OURS = ("WINNOW_", "HF_", "AWS_", "RAY_AUTH_", "TORCH_EXTENSIONS_")  # and begin with, where servers or jobs read them
LOG_WIDTH = 140  # characters of a line where no terminal sets a bound


class _Once(TyperCommand):
    """A command that refuses an option given twice where one value is taken; click would take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            valued = not getattr(option, "is_flag", True) and not option.multiple  # of an argument nothing is known
            if valued and given.count(option) > 1:
                raise ValueError(f"{option.opts[0]} is given twice, and takes one value; give it once")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A group of such commands."""

    def command(self, *args: Any, **kwargs: Any) -> Any:
        return super().command(*args, **{"cls": _Once, **kwargs})


def _console(stream: TextIO, stderr: bool) -> Console:
    bounded = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if bounded else LOG_WIDTH)


console, errors = _console(sys.stdout, stderr=False), _console(sys.stderr, stderr=True)


def settle_environment() -> None:
    """Make relative paths in the environment absolute: servers and jobs inherit it, and run in another directory."""
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
