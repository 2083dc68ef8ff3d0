"""MLflow's model registry: a chosen model becomes a version with an alias, by which whoever serves it finds it.

MLflow moves an alias without asking who has it, so each move is decided first by what its databases write once: a parameter of
a run. Moves of an alias are numbered, and the number is the parameter's name; of two that saw the same last move, the one that
writes the next number wins, and the other finds another's value there. That holds on any server with a database, whoever asks
from wherever. The alias follows: who won sets it, then reads the moves again, so that one who was slow mends what it overwrote.
"""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from cluster.reach import if_there
from cluster.tracking import EXPERIMENT, connect

GATES, RECIPE, SIZE = "winnow.gates", "winnow.recipe", "winnow.size"  # tags of a logged model
# Tag of a registered model: the run that keeps the moves of its aliases, whose names there begin so.
MOVES = "winnow.moves"
MOVE = re.compile(r"(\d*)([<>])(\d+) \w+")


class Moved(NamedTuple):
    """What an alias means now, and what it meant before; the same where nothing moved."""

    name: str
    alias: str
    version: int
    before: int | None
    address: str

    def __str__(self) -> str:
        if self.version == self.before:
            return f"{self.alias} of {self.name} is version {self.version} already ({self.address})"
        before = f"from version {self.before} " if self.before else ""
        return f"{self.alias} of {self.name} moved {before}to version {self.version} ({self.address})"


class Move(NamedTuple):
    before: int | None
    back: bool
    version: int


class Overtaken(ValueError):
    """Another moved the alias between the look and the move."""


def promote(uri: str, address: str, key: str, name: str | None, alias: str, force: bool = False) -> Moved:
    """Let ``alias`` of the registered model ``name``, that of the model's recipe unless given, mean this artifact. A model that
    is registered already keeps its version. Raises ValueError where no run told MLflow of the artifact, where it failed its
    gates, and where another moved the alias meanwhile."""
    client = connect(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    of_artifact = f"tags.`winnow.key` = '{key}'"
    models = client.search_logged_models([found.experiment_id], of_artifact, max_results=1) if found else []
    if not models:
        raise ValueError(f"{address}: MLflow knows no such model; run its recipe again, which tells it")
    (model,) = models
    name = name or model.tags.get(RECIPE) or EXPERIMENT
    if model.tags.get(GATES, "").startswith("fails") and not force:
        raise ValueError(f"{address} {model.tags[GATES]}; --force gives it the alias all the same")
    seen = Aliases(client, name, alias)
    version = _version(client, uri, name, model, address, key)
    return seen.move(version, address)


def rollback(uri: str, name: str | None, alias: str) -> Moved:
    """Give the alias back to the version that had it before. Raises ValueError where there is none."""
    client = connect(uri)
    moved = _moved(client)
    if not moved:
        raise ValueError("NAME: MLflow has no registered model whose aliases moved; winnow promote makes one")
    choices = f"choose one of {', '.join(sorted(moved))}"
    if name is None and len(moved) != 1:
        raise ValueError(f"NAME: of which registered model? {choices}")
    name = next(iter(moved)) if name is None else name
    if name not in moved:
        raise ValueError(f"NAME: MLflow has no registered model {name!r} whose aliases moved; {choices}")
    seen = Aliases(client, name, alias)
    if not seen.moves and seen.before is None:
        raise ValueError(
            f"ALIAS: {name} has no alias {alias!r}; choose one of {', '.join(sorted(moved[name].aliases)) or 'none'}"
        )
    there = {int(version.version): version for version in client.search_model_versions(f"name = '{name}'")}
    earlier = [number for number in _holders(seen.moves)[:-1] if number in there and number != seen.before]
    if not earlier:
        raise ValueError(f"{alias} of {name}: no version had it before that is there still")
    version = there[earlier[-1]]
    return seen.move(version, version.tags.get("winnow.address", ""), back=True)


def _moved(client: Any) -> dict[str, Any]:
    """The registered models whose aliases were moved here, by name."""
    found: dict[str, Any] = {}
    token = None
    while True:
        models = client.search_registered_models(max_results=1000, page_token=token)
        found |= {model.name: model for model in models if MOVES in model.tags}
        if not (token := models.token):
            return found


def _version(client: Any, uri: str, name: str, model: Any, address: str, key: str) -> Any:
    """The version of an artifact, made where there is none."""
    import mlflow

    if not client.search_registered_models(f"name = '{name}'"):
        with suppress(ConnectionError):  # another may be quicker
            client.create_registered_model(name)
    found = _of_key(client, name, key)
    if found is None:
        tags = {"winnow.address": address, "winnow.key": key}
        tags |= {tag: model.tags[tag] for tag in (GATES, SIZE, RECIPE) if tag in model.tags}
        mlflow.set_tracking_uri(uri)  # a database asks the process's own MLflow what models:/ means
        source = {"source": f"models:/{model.model_id}", "run_id": model.source_run_id, "model_id": model.model_id}
        about = model.tags.get("mlflow.note.content")
        client.create_model_version(name, **source, tags=tags, description=about, await_creation_for=0)
        found = _of_key(client, name, key)  # the first, where two made one
    return found


def _of_key(client: Any, name: str, key: str) -> Any:
    versions = [one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get("winnow.key") == key]
    return min(versions, key=lambda one: int(one.version), default=None)


class Aliases:
    """An alias of a registered model as it was when it was looked at."""

    def __init__(self, client: Any, name: str, alias: str) -> None:
        self.client, self.name, self.alias = client, name, alias
        self.moves, self.before = self._moves(), self._holder()

    def move(self, version: Any, address: str, back: bool = False) -> Moved:
        """Let it mean another version, unless somebody moved it since it was looked at."""
        number = int(version.version)
        if number != self.before:
            self._decide(number, back)
            self._follow()
        return Moved(self.name, self.alias, number, self.before, address)

    def _decide(self, number: int, back: bool) -> None:
        run, name = self._run(), self._numbered(len(self.moves) + 1)
        if run is None:
            raise ValueError(f"{self.name}: none of its versions names a run that MLflow has, where moves of an alias are kept")
        mine = f"{self.before or ''}{'<' if back else '>'}{number} {uuid.uuid4().hex[:12]}"
        with suppress(ConnectionError):  # it is written once, and another's may stand there: that is read next
            self.client.log_param(run, name, mine)
        written = self.client.get_run(run).data.params.get(name)
        if written is None:
            raise ValueError(f"{self.name}: MLflow does not take moves of an alias in run {run}; restore it, if it was deleted")
        if written != mine:
            to = _read(written).version
            raise Overtaken(f"{self.alias} of {self.name} went to version {to} meanwhile; ask again if it should be {number}")

    def _follow(self) -> None:
        """Set the alias to what the last move says, until it is so."""
        while True:
            moves = self._moves()
            self.client.set_registered_model_alias(self.name, self.alias, str(moves[-1].version))
            if len(self._moves()) == len(moves):
                break
        before = moves[-1].before
        text = f"version {moves[-1].version}" + (f", before it version {before}" if before else "")
        self.client.set_registered_model_tag(self.name, f"winnow.{self.alias}", text)

    def _moves(self) -> list[Move]:
        """All that were decided, the first first."""
        run = self._run()
        params = self.client.get_run(run).data.params if run else {}
        found: list[Move] = []
        while text := params.get(self._numbered(len(found) + 1)):
            found.append(_read(text))
        return found

    def _numbered(self, move: int) -> str:
        return f"{MOVES}.{self.name}.{self.alias}.{move}"

    def _run(self) -> str | None:
        """Where moves are kept: the run of the first version, whoever asks first; of those that are there, since ``mlflow gc``
        removes for good what was deleted. None where there is no version yet."""
        found = self.client.search_registered_models(f"name = '{self.name}'")
        if found and (run := found[0].tags.get(MOVES)) and if_there(partial(self.client.get_run, run)):
            return str(run)
        versions = self.client.search_model_versions(f"name = '{self.name}'") if found else []
        known = sorted((one for one in versions if one.run_id), key=lambda one: int(one.version))
        first = next((one for one in known if if_there(partial(self.client.get_run, one.run_id))), None)
        if first is not None:
            self.client.set_registered_model_tag(self.name, MOVES, first.run_id)
        return first.run_id if first else None

    def _holder(self) -> int | None:
        found = self.client.search_registered_models(f"name = '{self.name}'")
        version = found[0].aliases.get(self.alias) if found else None
        return int(version) if version else None


def _read(text: str) -> Move:
    found = MOVE.fullmatch(text)
    if found is None:
        raise ValueError(f"{MOVES}: {text!r} is no move of an alias")
    return Move(int(found[1]) if found[1] else None, found[2] == "<", int(found[3]))


def _holders(moves: list[Move]) -> list[int]:
    """Who had the alias, the last that has it last; a move back takes the one away that lost it."""
    held: list[int] = []
    for move in moves:
        if move.back:
            held = held[: len(held) - 1 - held[::-1].index(move.version)] if move.version in held else held
        elif move.before and (not held or held[-1] != move.before):
            held.append(move.before)
        held.append(move.version)
    return held
