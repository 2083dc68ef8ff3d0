"""Load: a user's checkpoint as an artifact, so that it is measured, compared with and exported like any other model.

Weights come out byte for byte as they went in, under the names of the model's own parameters, experts that lie apart on the hub
fused as the model holds them; those of a GGUF file dequantized.
"""

from __future__ import annotations

from typing import ClassVar

from tasks.context import Context
from tasks.models.facts import Parties, facts_in
from tasks.stage import Kind, ModelStage


class Load(ModelStage):
    """Takes the recipe's ``model``, which is a checkpoint."""

    needs: ClassVar[dict[str, Kind]] = {}

    def inspect(self) -> None:
        if self.model is None or self.model.checkpoint is None:
            raise ValueError("there are no weights to load; name a checkpoint in recipe.model, or put pretrain in its place")
        super().inspect()

    def parties(self, context: Context) -> Parties:
        return Parties(None, facts_in(self.incoming(context)))

    def run(self, context: Context) -> dict[str, float]:
        from tasks.models.files.names import copy_by_own_names

        copy_by_own_names(self.incoming(context), context.output)
        return {}
