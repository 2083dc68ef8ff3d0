"""What is written about the tree is there: paths in documents, modules by dotted name in documents, docstrings, strings; and
nothing that a merge left undecided."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("flows", "tasks", "cluster", "dashboards", "infra", "tests", "docs")
PLACES = [*ROOT.glob("*.*"), *(path for top in TOPS for path in (ROOT / top, *(ROOT / top).rglob("*")))]
TREE = [path.relative_to(ROOT).as_posix() for path in PLACES]
DOCUMENTS = sorted(ROOT / path for path in TREE if path.endswith(".md"))
INVENTED = {"tasks/pruners/weight_times_energy.py", "tasks/VERB.py"}  # what a reader is told to make
NO_SOURCES = {"tasks.json", "tasks.calibrate.solvers._settling"}  # a file of a corpus, and what the install compiles
NO_SOURCES |= {"cluster.yaml", "cluster.md"}  # a profile and a document
WIDTH = 128  # characters, as ruff has it for code
WRITTEN = ["README.md", *sorted(path for path in TREE if re.fullmatch(r"docs/(?!zoo)\w+\.md|\w+/README\.md", path))]
CONFLICT = re.compile(r"^(?:<{7}|>{7}|\|{7})(?: |$)", re.M)  # what a merge leaves where it could not decide
PATH = re.compile(r"(?<![\w/.<-])(?:[\w-]+/)*\.?[\w-]+\.(?:py|lock|cpp|yaml|md)\b|(?<![\w/.<])(?:[\w-]+/)+(?![\w{<*])")
MODULE = re.compile(r"(?<![\w./-])(?:flows|tasks|cluster|dashboards)(?:\.\w+)+")


def there(path: str) -> bool:
    """A path from the root, or the end of one for what a folder's document or the README's tree says of its own."""
    path = path.rstrip("/")
    return path in TREE or path in INVENTED or any(known.endswith(f"/{path}") for known in TREE)


def leads_somewhere(name: str) -> bool:
    """Whether a dotted name is that of a package, a module, or something in a module."""
    for place in accumulate(name.split(".")[1:], lambda folder, part: folder / part, initial=ROOT / name.partition(".")[0]):
        if place.with_suffix(".py").is_file():
            return True
        if not place.is_dir():
            return False
    return True


def strings(path: str) -> Iterator[str]:
    """The docstrings and other strings of a source."""
    return (
        node.value
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def prose(text: str) -> Iterator[str]:
    """Lines that can be broken: none of a table, and none of code whose words a shell reads."""
    shell = False
    for line in text.splitlines():
        shell = line.startswith("```sh") or (shell and not line.startswith("```"))
        if not shell and not line.startswith("|"):
            yield line


@pytest.mark.parametrize("name", WRITTEN)
def test_prose_is_as_wide_as_code(name: str) -> None:
    """But for docs/zoo.md, which is written by a program and quotes refusals."""
    assert [line for line in prose((ROOT / name).read_text()) if len(line) > WIDTH] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_that_a_document_names_is_there(document: Path) -> None:
    text = re.sub(r"\w+://\S+|```python.*?```", "", document.read_text(), flags=re.S)
    assert {path for path in PATH.findall(text) if not there(path)} == set()


def test_every_module_that_is_named_is_there() -> None:
    texts = [(path.name, path.read_text()) for path in DOCUMENTS]
    texts += [(path, text) for path in TREE if path.endswith(".py") for text in strings(path)]
    named = {(name, place) for place, text in texts for name in MODULE.findall(text)}
    assert {(name, place) for name, place in named if name not in NO_SOURCES and not leads_somewhere(name)} == set()


def test_no_file_holds_what_a_merge_left_undecided() -> None:
    texts = [(path.relative_to(ROOT).as_posix(), path.read_bytes()) for path in PLACES if path.is_file()]
    assert [place for place, text in texts if CONFLICT.search(text.decode(errors="replace"))] == []
    assert CONFLICT.search("kept\n<<<<<<< HEAD\nours\n")


def test_help_lists_the_commands_in_the_order_of_the_readme() -> None:
    from typer.main import get_command

    from flows.cli import app

    offered = list(get_command(app).commands)
    told = re.findall(r"^winnow ([a-z]+)", (ROOT / "README.md").read_text(), re.M)
    assert [name for name in dict.fromkeys(told) if name != "law"] == [name for name in offered if name not in ("law", "unpin")]
    assert offered[-1] == "law" and offered.index("unpin") == offered.index("pin") + 1
