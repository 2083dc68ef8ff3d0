"""Who takes part in each stage of a recipe, as far as this machine knows: models without memory, tokenizers, teachers.

transformers tells, which takes seconds to import, so this is asked last, and of each model and tokenizer once.
"""

from __future__ import annotations

from pathlib import Path

from flows.nodes import Node, Recipe, naming, tokenizing
from tasks.data.tokenizer import Meaning
from tasks.models.facts import ModelFacts, Parties, facts_of
from tasks.models.source import ModelSource
from tasks.stage import members


def examine(recipe: Recipe) -> None:
    """Raise ValueError, in one line, at the first stage whose parties fit neither each other nor its fields."""
    known = _Known(recipe)
    for node in recipe.nodes:
        with naming(node):
            node.stage.check_parties(known.parties(node))


class _Known:
    """The models and tokenizers of a recipe, each looked at once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.models: dict[tuple[str, int | None], ModelFacts | None] = {}
        self.tokenizers: dict[str, int | None] = {}
        self.read: dict[Path, Meaning | None] = {}

    def parties(self, node: Node) -> Parties:
        data = node.id if node.stage.yields == "tokens" else node.parents.get("data")
        others = [self._model(self.recipe.node(id), made=True) for id in members(node.parents, node.stage.plural)]
        known = tuple(facts for facts in others if facts)
        met = (self._ids(data), self._model(node), self._teacher(node), self._reference(node), known)
        return Parties(*met, meanings=self._meanings(node, data))

    def _meanings(self, node: Node, data: str | None) -> dict[str, Meaning | None]:
        """What ids stand for to all who take part."""
        taking = {role: self._meaning(self.recipe.node(id)) for role, id in node.parents.items() if role != "data"}
        taught = ("teacher",) if node.stage.needs_teacher() else ()
        outside = {role: getattr(node.stage, role, None) for role in ("model", *taught, "reference")}
        said = {role: self._own(source) for role, source in outside.items() if source and role not in taking}
        return {"data": self._learned(data), **taking, **said}

    def _meaning(self, node: Node) -> Meaning | None:
        """To a model, or to tokens. A model that came with no tokenizer has that of the data it was trained on first."""
        if node.stage.yields == "tokens":
            return self._learned(node.id)
        source = getattr(node.stage, "model", None)
        own = self._meaning(self.recipe.node(node.came_from)) if node.came_from else source and self._own(source)
        return own or (self._learned(node.parents["data"]) if node.stage.distributed else None)

    def _own(self, source: ModelSource) -> Meaning | None:
        return self._in(source.checkpoint.local) if source.checkpoint and source.checkpoint.local else None

    def _learned(self, data: str | None) -> Meaning | None:
        """To tokens: by a tokenizer on this machine, or one that a stage will learn."""
        if data is None:
            return None
        node = tokenizing(self.recipe.nodes, data)
        if learned := node.stage.learned_from():
            return Meaning(learned=learned)
        directory = node.stage.tokenizer.checkpoint.local
        return self._in(directory) if directory else None

    def _in(self, directory: Path) -> Meaning | None:
        if directory not in self.read:
            self.read[directory] = Meaning.of(directory)
        return self.read[directory]

    def _ids(self, data: str | None) -> int | None:
        """How many ids the tokenizer behind a node of tokens needs; None where it lies elsewhere."""
        if data is None:
            return None
        node = tokenizing(self.recipe.nodes, data)
        if node.id not in self.tokenizers:
            self.tokenizers[node.id] = node.stage.tokenizer.ids()
        return self.tokenizers[node.id]

    def _model(self, node: Node, made: bool = False) -> ModelFacts | None:
        """Of the model that a node takes, or of the one it has ``made``: of where that began, in the sizes that the stages
        since then left. Nothing else of what is known here is changed on the way."""
        passed = [node] if made else []
        while getattr(node.stage, "model", None) is None and node.came_from:
            node = self.recipe.node(node.came_from)
            passed.append(node)
        source = getattr(node.stage, "model", None)
        facts = self._facts(source, self._ids(node.parents.get("data"))) if source else None
        for each in reversed(passed):
            facts = facts and each.stage.reshaped(facts)
        return facts

    def _teacher(self, node: Node) -> ModelFacts | None:
        if "logits" in node.parents:
            return self._model(self.recipe.node(node.parents["logits"]))
        if not node.stage.needs_teacher():
            return None
        if "teacher" in node.parents:
            return self._model(self.recipe.node(node.parents["teacher"]), made=True)
        return self._facts(node.stage.teacher, None)

    def _reference(self, node: Node) -> ModelFacts | None:
        if "reference" in node.parents:
            return self._model(self.recipe.node(node.parents["reference"]), made=True)
        source = getattr(node.stage, "reference", None)
        return self._facts(source, None) if source else None

    def _facts(self, source: ModelSource, ids: int | None) -> ModelFacts | None:
        key = (source.model_dump_json(), ids if source.architecture else None)
        if key not in self.models:
            self.models[key] = facts_of(source, ids)
        return self.models[key]
