"""The method that the README shows is a method: saved as it stands, recipes name it and every contract of pruners holds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

import tasks.pruners
from tasks.methods import build, names
from tasks.prune import Prune
from tests.contracts import test_pruners as contracts

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The README's pruner on a shelf of its own, beside ours; its name."""
    text = README.read_text()
    [name], [code] = re.findall(r"`tasks/pruners/(\w+)\.py`", text), re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(tasks.pruners, "__path__", [*tasks.pruners.__path__, str(tmp_path)])
    monkeypatch.setitem(contracts.PATTERNS, name, build("pruners", name).patterns)
    return name


def cases(contract: Any, name: str) -> Iterator[dict[str, Any]]:
    """The arguments that a contract's own marks give it, with another method's name."""
    axes = []
    for mark in getattr(contract, "pytestmark", []):
        fields = (mark.args[0],) if isinstance(mark.args[0], str) else mark.args[0]
        rows = [row if len(fields) > 1 else (row,) for row in mark.args[1]]
        named = [tuple(name if field == "name" else value for field, value in zip(fields, row, strict=True)) for row in rows]
        axes.append([dict(zip(fields, row, strict=True)) for row in dict.fromkeys(named)])
    for chosen in product(*axes):
        yield {field: value for row in chosen for field, value in row.items()}


def test_the_readmes_pruner_is_one_and_keeps_every_contract(shown: str, tiny: Any, tmp_path: Path) -> None:
    assert shown in names("pruners") and Prune(method=shown, sparsity=0.5).method.name == shown
    ran = []
    for title, contract in vars(contracts).items():
        wanted = inspect.signature(contract).parameters if title.startswith("test_") else ()
        for number, given in enumerate(islice(cases(contract, shown), 4) if "name" in wanted else ()):
            (tmp_path / f"{title}-{number}").mkdir()
            fixtures = {"tiny": tiny, "tmp_path": tmp_path / f"{title}-{number}"}
            contract(**given, **{field: value for field, value in fixtures.items() if field in wanted})
            ran.append(title)
    assert len(set(ran)) >= 8
