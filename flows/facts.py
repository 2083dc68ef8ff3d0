"""Who takes part in each stage of a recipe, as far as this machine knows: models without memory, tokenizers, teachers.

transformers tells, which takes seconds to import, so this is asked last, and of each model and tokenizer once.
"""

from __future__ import annotations

from flows.nodes import Node, Recipe, naming
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

    def parties(self, node: Node) -> Parties:
        data = node.id if node.stage.yields == "tokens" else node.parents.get("data")
        others = [self._model(self.recipe.node(id)) for id in members(node.parents, node.stage.plural)]
        known = tuple(facts for facts in others if facts)
        return Parties(self._ids(data), self._model(node), self._teacher(node), self._reference(node), known)

    def _ids(self, data: str | None) -> int | None:
        """How many ids the tokenizer behind a node of tokens needs; None where it lies elsewhere."""
        if data is None:
            return None
        node = self.recipe.node(data)
        if "tokenizer" in node.parents:
            return self._ids(node.parents["tokenizer"])
        if data not in self.tokenizers:
            self.tokenizers[data] = node.stage.tokenizer.ids()
        return self.tokenizers[data]

    def _model(self, node: Node) -> ModelFacts | None:
        """Of where a node's model began: a stage changes its weights, and neither its vocabulary nor its positions."""
        while getattr(node.stage, "model", None) is None and node.came_from:
            node = self.recipe.node(node.came_from)
        source = getattr(node.stage, "model", None)
        return self._facts(source, self._ids(node.parents.get("data"))) if source else None

    def _teacher(self, node: Node) -> ModelFacts | None:
        if not node.stage.needs_teacher():
            return None
        if "teacher" in node.parents:
            return self._model(self.recipe.node(node.parents["teacher"]))
        return self._facts(node.stage.teacher, None)

    def _reference(self, node: Node) -> ModelFacts | None:
        if "reference" in node.parents:
            return self._model(self.recipe.node(node.parents["reference"]))
        source = getattr(node.stage, "reference", None)
        return self._facts(source, None) if source else None

    def _facts(self, source: ModelSource, ids: int | None) -> ModelFacts | None:
        key = (source.model_dump_json(), ids if source.architecture else None)
        if key not in self.models:
            self.models[key] = facts_of(source, ids)
        return self.models[key]
