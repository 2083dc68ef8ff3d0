"""A recipe says what is computed: a list of stages, each fed by earlier ones.

It is read, checked and expanded here into a graph of nodes without importing torch, Ray, Prefect or MLflow, so that a
wrong recipe costs a second and one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cluster.documents import load_yaml, parse_yaml
from flows.claims import Claim
from flows.gates import Required
from flows.lineage import check_measured, check_required, check_trials, evaluations, referring
from flows.nodes import Node, Recipe, vocabulary
from flows.override import Setting, changed
from flows.roles import REMEDY, an_entry, check_together, check_used
from flows.succession import check_succession
from flows.sweep import RESERVED, Entry, Sweep
from flows.trials import Search, Values
from tasks.data.place import reading
from tasks.evaluators import Evaluator
from tasks.methods import list_of, validate
from tasks.models.source import ModelSource
from tasks.stage import STAGES, Kind, Stage, members, stage_class

SHIPPED = Path(__file__).parent / "recipes"
NAME = r"^[a-z0-9][a-z0-9_-]*$"  # of recipes and of stages: they name MLflow's metrics, and "a.size" belongs to a

LONGEST_ID = 160  # it begins MLflow's names of parameters and metrics, of 250 characters at most


class Header(BaseModel):
    """The recipe's own fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=NAME, max_length=LONGEST_ID)
    """Name of the recipe; names its runs."""
    description: str = ""
    """What it is for, for people."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every stage that has none of its own."""
    model: ModelSource | None = None
    """Where the model comes from: an architecture or a checkpoint."""
    evaluate: Annotated[tuple[Evaluator, ...], list_of("evaluators")] = ()
    """The evaluators that measure every model: names, or ``{NAME: {field: value}}``."""
    stages: list[Annotated[dict[str, Any], BeforeValidator(an_entry)]] = Field(min_length=1)
    """What is computed, in order; each takes the nearest earlier stage that yields what it needs."""
    claims: tuple[Claim, ...] = ()
    """What its models should show."""
    require: tuple[Required, ...] = ()
    """What the models must reach that no other is made from, such as ``perplexity <= 1.05 * dense``."""
    search: Search | None = None
    """How the fields are drawn that stages name under ``search``, and how branches are judged."""


def load_recipe(
    source: str, served: bool = False, settings: Sequence[Setting] = (), trials: list[Values] | None = None
) -> Recipe:
    """A recipe from a YAML file, from the name of one in flows/recipes, or from YAML text (what a UI form sends), with some
    fields set to other values.

    Relative paths in it begin in the directory the command is run in. Text, and whatever is ``served`` to others, comes from
    nowhere in particular: relative paths are refused. ``trials`` are those of its search, where they were chosen already."""
    document, text = read_recipe(source)
    if settings:
        document = changed(document, settings)
        text = yaml.safe_dump(document, sort_keys=False)
    return parse_recipe(document, text, None if served or "\n" in source else Path.cwd(), trials)


def read_recipe(source: str) -> tuple[dict[str, Any], str]:
    """The document and the text of a recipe, unchecked."""
    if "\n" in source:
        return parse_yaml(source, "recipe"), source
    for path in (Path(source), SHIPPED / f"{source}.yaml"):
        if path.is_file():
            return load_yaml(path), path.read_text()
    what = "it is no plain file" if Path(source).exists() else "no such file"
    names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    raise ValueError(f"recipe {source}: {what}; choose one of {names} or give a path")


def parse_recipe(document: Any, text: str, folder: Path | None = None, trials: list[Values] | None = None) -> Recipe:
    """Check a document and expand it. Raises ValueError, one line, at the first thing wrong. ``folder`` is where its relative
    paths begin; without one they are refused."""
    if not isinstance(document, dict):
        raise ValueError("recipe: a mapping with name and stages is needed")
    header = validate(Header, document, "recipe", reading(folder))
    search = header.search.model_copy(update={"trials": trials}) if header.search and trials else header.search
    graph, sweep = _Graph(header, folder), Sweep(document.get("model"), search)
    for position, stated in enumerate(header.stages):
        for entry in sweep.expand(stated, f"stages[{position}]"):
            graph.add(entry)
    check_measured(graph.nodes, header.evaluate)
    check_succession(graph.nodes)
    check_required(graph.nodes, header.require, header.evaluate)
    for position, claim in enumerate(header.claims):
        claim.check([(node.base, node.branch) for node in graph.nodes if node.stage.yields == "model"], f"claims[{position}]")
    drawn = sweep.trials.finished()
    check_trials(graph.nodes, header.search, drawn)
    told = (header.name, header.description, tuple(graph.nodes), text, header.claims, header.require)
    return Recipe(*told, header.search, sweep.trials.space, drawn)


class _Graph:
    """Builds the nodes of a recipe, resolving each role to the nearest ancestor that yields what it needs."""

    def __init__(self, header: Header, folder: Path | None) -> None:
        self.header, self.folder = header, folder
        self.nodes: list[Node] = []
        self.ancestry: dict[str, tuple[str, ...]] = {}  # node id -> ids it was said to come from
        self.previous: tuple[str, ...] = ()

    def add(self, made: Entry) -> None:
        entry, where = made.document, made.where
        names = [key for key in entry if key not in RESERVED]
        if len(names) != 1:
            raise ValueError(f"recipe.{where}: name exactly one stage, got {names}; choose one of {', '.join(STAGES)}")
        try:
            kind = stage_class(names[0])
        except ValueError as error:
            raise ValueError(f"recipe.{where}: {error}") from None
        id, path, own = str(entry.get("id", names[0])), f"recipe.{where}.{names[0]}", entry[names[0]]
        if not isinstance(own, dict):
            raise ValueError(f"{path}: fields are needed, got {own!r}; choose some of {', '.join(kind.model_fields)}")
        if len(id) > LONGEST_ID:
            raise ValueError(
                f"recipe.{where}.id: {len(id)} characters are more than the {LONGEST_ID} MLflow has room for; give a shorter id"
            )
        if not re.fullmatch(NAME, id):
            raise ValueError(f"recipe.{where}.id: {id!r} is no name; use lower-case letters, digits, _ and -")
        fields = {"seed": self.header.seed, **own}
        if any(node.id == id for node in self.nodes):
            raise ValueError(f"recipe.{where}.id: {id!r} is taken; give this stage an id of its own")
        if entry.get("gather") and not kind.plural:
            able = [name for name in STAGES if stage_class(name).plural]
            raise ValueError(f"recipe.{where}.gather: {names[0]} takes one model and not a list; choose {' or '.join(able)}")
        stated = self._stated(entry.get("from", list(self.previous)), kind, where)
        if "model" in kind.model_fields and "model" not in fields and self._starts_here(kind, stated):
            fields["model"] = self.header.model
        if "teacher" in kind.model_fields and "teacher" not in stated and (pruned := self._pruned(stated.values())):
            fields.setdefault("teacher", pruned.stage.model)  # set where the pruning began at a user's checkpoint
        size = vocabulary(self.nodes, self._nearest(stated.values(), "tokens"))
        stage = validate(kind, kind.resolve(fields, size, path), path, reading(self.folder))
        self.ancestry[id] = tuple(dict.fromkeys(stated.values()))
        stage, reference = referring(self.nodes, stage, stated.get("model") or self._nearest(stated.values(), "model"))
        check_used(stage, own, stated, path)
        parents = self._parents(id, stage, {"reference": reference, **stated} if reference else stated, path)
        check_together(made, path, [node for node in self.nodes if node.id in members(parents, stage.plural)])
        self.nodes.append(Node(id, stage, parents, branch=made.branch, base=made.base))
        self.previous = (id,)
        if stage.yields == "model":
            self._measure(id)

    def _node(self, id: str) -> Node:
        return next(node for node in self.nodes if node.id == id)

    def _stated(self, origin: Any, kind: type[Stage], where: str) -> dict[str, str]:
        """``from``: an id, a list of ids, or {role: id}; as {role or position: id}."""
        if isinstance(origin, str):
            origin = [origin]
        if isinstance(origin, dict) and (odd := origin.keys() - kind.needs.keys()):
            raise ValueError(f"recipe.{where}.from: no role {min(odd)!r}; choose one of {', '.join(kind.needs) or 'none'}")
        if isinstance(origin, dict) and isinstance(listed := origin.get(kind.plural), list):
            origin = {role: id for role, id in origin.items() if role != kind.plural}
            origin |= {f"{kind.plural}_{number}": id for number, id in enumerate(listed)}
        stated = origin if isinstance(origin, dict) else {str(index): id for index, id in enumerate(origin)}
        known = [node.id for node in self.nodes if not node.measures]
        for id in stated.values():
            if id not in known:
                raise ValueError(f"recipe.{where}.from: no earlier stage {id!r}; choose one of {', '.join(known) or 'none'}")
        return stated

    def _starts_here(self, kind: type[Stage], stated: dict[str, str]) -> bool:
        """Whether the model comes from the recipe's header: nothing upstream made one."""
        return "model" not in kind.needs or self._nearest(stated.values(), "model") is None

    def _nearest(self, origins: Iterable[str], yields: Kind, named: str | None = None) -> str | None:
        frontier = list(origins)
        while frontier:
            id = frontier.pop(0)
            node = self._node(id)
            if node.stage.yields == yields and named in (None, node.name):
                return id
            frontier.extend(self.ancestry[id])
        return None

    def _parents(self, id: str, stage: Stage, stated: dict[str, str], path: str) -> dict[str, str]:
        parents = {}
        for role, kind in stage.roles().items():
            if role == stage.plural:
                parents |= self._several(role, kind, stated, path)
                continue
            if role == "model" and role not in stated and (source := getattr(stage, "model", None)):
                if source.checkpoint is None:
                    raise ValueError(f"{path}: an architecture has no weights; {REMEDY[role]}")
                continue
            found = stated.get(role)
            if found is None and role != "reference":  # that was looked for already
                nearest = self._nearest(self.ancestry[id], kind)
                found = self._teacher(id, stage, parents.get("model")) if role == "teacher" else nearest
            if found is None:
                raise ValueError(f"{path}: no {role} ({kind}) upstream; {REMEDY[role]}")
            if (made := self._node(found).stage.yields) != kind:
                raise ValueError(f"{path}: {role} needs {kind}, and {found} makes {made}")
            parents[role] = found
        return parents

    def _several(self, role: str, kind: Kind, stated: dict[str, str], path: str) -> dict[str, str]:
        """The nearest artifact of each origin, for a role that takes a list."""
        named = members(stated, role)
        found = named or list(dict.fromkeys(filter(None, (self._nearest([id], kind) for id in stated.values()))))
        if len(found) < 2:
            raise ValueError(f"{path}: {role} are two or more; put gather: true after a grid, or name them with from: [ID, ID]")
        if odd := [id for id in found if self._node(id).stage.yields != kind]:
            raise ValueError(f"{path}: {role} needs {kind}s, and {odd[0]} makes none")
        return {f"{role}_{number}": id for number, id in enumerate(found)}

    def _pruned(self, origins: Iterable[str]) -> Node | None:
        """The last pruning upstream: what went into it teaches."""
        pruned = self._nearest(origins, "model", named="prune")
        return self._node(pruned) if pruned else None

    def _teacher(self, id: str, stage: Stage, model: str | None) -> str | None:
        """What went into the last pruning; where nothing was pruned, the model itself, if it is the method that prunes."""
        if pruned := self._pruned(self.ancestry[id]):
            return pruned.parents.get("model")
        return model if getattr(stage, "method", None) and stage.method.masks != "held" else None

    def _measure(self, id: str) -> None:
        """The evaluations that follow a model."""
        data = self._nearest([id], "tokens")
        if self.header.evaluate and data is None:
            raise ValueError("recipe.evaluate: no tokens upstream; put a prepare stage first")
        for stage, parents in evaluations(self.nodes, self.header.evaluate, self.header.seed, id, data):
            self.nodes.append(Node(f"{id}.{stage.method.name}", stage, parents, measures=id))
