"""What a recipe is once it is read: stages as nodes of a graph, each with the nodes that feed it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flows.claims import Claim
from flows.gates import Gate
from flows.sweep import Branch
from flows.trials import Axis, Search, Trial
from tasks.refusal import refused
from tasks.stage import Stage, members


@dataclass(frozen=True)
class Node:
    """One stage in the graph: ``parents`` maps each role to the id of the node that fills it.

    ``branch`` says which values of a sweep it has, by axis; ``base`` is its id without them.
    """

    id: str
    stage: Stage
    parents: dict[str, str]
    measures: str | None = None  # for an evaluation that the recipe did not list: the node it belongs to
    branch: Branch = field(default_factory=dict)
    base: str = ""

    @property
    def name(self) -> str:
        return self.stage.stage_name()

    @property
    def came_from(self) -> str | None:
        """The node of the model that this one's was made from, or of the first of members."""
        return self.parents.get("model") or next(iter(members(self.parents, self.stage.plural)), None)


@dataclass(frozen=True)
class Recipe:
    name: str
    description: str
    nodes: tuple[Node, ...]
    text: str
    claims: tuple[Claim, ...] = ()
    require: tuple[Gate, ...] = ()
    search: Search | None = None
    space: dict[str, Axis] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()

    @property
    def decides(self) -> bool:
        """Whether it has trials that are drawn only when earlier ones have run."""
        return self.search is not None and self.search.decides

    def node(self, id: str) -> Node:
        return next(node for node in self.nodes if node.id == id)

    def models(self) -> Iterator[Node]:
        return (node for node in self.nodes if node.stage.yields == "model")


def tokenizing(nodes: Iterable[Node], data: str) -> Node:
    """The node whose tokenizer a node of tokens has."""
    known = {node.id: node for node in nodes}
    node = known[data]
    while "tokenizer" in node.parents:
        node = known[node.parents["tokenizer"]]
    return node


def vocabulary(nodes: Iterable[Node], data: str | None) -> int | None:
    """The size of the tokenizer behind a node of tokens, where the recipe says it."""
    return tokenizing(nodes, data).stage.tokenizer.train if data else None


@contextmanager
def naming(node: Node) -> Iterator[None]:
    """What is refused meanwhile is refused in the name of a node."""
    try:
        yield
    except ValueError as error:
        if not refused(error):
            raise
        raise ValueError(f"recipe.{node.id}: {error}") from None


def as_written(field: str) -> str:
    """A field of an artifact's identity in the words of a recipe: ``params.batch`` is ``batch`` there."""
    stated = field.removeprefix("params.")
    outside = stated.removeprefix("fingerprints.")
    return stated if outside == stated else f"what {outside} holds"
