"""Pretrain: a model initialised at random, or a user's checkpoint, trained on the corpus under a regime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tasks.context import Context
from tasks.methods import of, validate
from tasks.models.facts import ModelFacts, facts_of
from tasks.models.source import ModelSource
from tasks.refusal import refused
from tasks.stage import Facts, Kind
from tasks.train.regime import Regime
from tasks.train.training import TrainStage

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tasks.formats.mask import Masks
    from tasks.models.accounting import Shape
    from tasks.train.birth import Weights
    from tasks.train.cost import Machine


class Pretrain(TrainStage):
    """Trains a model under a regime, from random weights or a user's checkpoint.

    ``tokens`` is the compute budget in dense-equivalent tokens; a sparse regime turns what it saves into more.

    A transform of the model sets sizes, the regime the sparsity. ``sparsity: iso`` asks for the one at which the transformed
    model costs what its architecture costs dense; a number must be that one.
    """

    version: ClassVar[int] = 3
    needs: ClassVar[dict[str, Kind]] = {"data": "tokens"}

    model: ModelSource
    """What is trained: an architecture at random, or a checkpoint; the recipe's ``model`` unless given."""
    method: Annotated[Regime, of("regimes")] = Field("dense", validate_default=True)
    """How it is trained: a regime."""

    @model_validator(mode="after")
    def _learns_alone(self) -> Pretrain:
        if self.objective and (self.needs_teacher() or self.objective.written()):
            raise ValueError(
                f"objective {self.objective.name} learns from a teacher, and pretrain has none; "
                "choose cross_entropy, or recover with it"
            )
        if self.needs_teacher():
            name = self.method.name
            raise ValueError(f"{name} learns from a teacher, and pretrain has none; set {name}: {{kl: 0}}, or recover with it")
        return self

    @model_validator(mode="after")
    def _has_what_to_freeze(self) -> Pretrain:
        if self.method.freezes and self.model.architecture:
            raise ValueError(
                f"{self.method.name} freezes the weights, and those of a new model are random; "
                "choose another method, or begin at a checkpoint"
            )
        return self

    @classmethod
    def resolve(cls, fields: dict[str, Any], vocabulary: int | None, where: str) -> dict[str, Any]:
        spec = fields.get("method")
        methods = spec.items() if isinstance(spec, dict) else ()
        found = [name for name, own in methods if isinstance(own, dict) and own.get("sparsity") == "iso"]
        if not found:
            return fields

        def given(sparsity: float) -> dict[str, Any]:
            return {**fields, "method": {**spec, found[0]: {**spec[found[0]], "sparsity": sparsity}}}

        stage = validate(cls, given(0.5), where)  # so that whatever else is wrong is said first
        try:
            if (iso := stage.model.iso_sparsity(vocabulary, stage.length)) is None:
                raise ValueError("iso needs a model with a transform; give a number")
        except ValueError as error:
            if not refused(error):
                raise
            raise ValueError(f"{where}.method.{found[0]}.sparsity: {error}") from None
        return given(round(iso, 6))

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.model.architecture:
            self.model.architecture.check(facts.vocabulary)
            self._check_iso(facts)
        elif facts.vocabulary and facts.vocabulary > self.model.config().get("vocab_size", facts.vocabulary):
            raise ValueError(
                f"the tokenizer has {facts.vocabulary} tokens, more than the model's vocab_size "
                f"{self.model.config()['vocab_size']}; take the checkpoint's tokenizer"
            )

    def _check_iso(self, facts: Facts) -> None:
        """A transform sets the sizes, the regime the sparsity; they agree to a thousandth of the FLOPs or are refused."""
        iso, given = self.model.iso_sparsity(facts.vocabulary, self.length), getattr(self.method, "sparsity", None)
        if iso is not None and given is not None and abs(given - iso) > 1e-3 * (1 - iso):
            raise ValueError(
                f"method.{self.method.name}.sparsity: {given:g} does not make the model cost what it costs dense; "
                f"with transform {self.model.transform.name} choose {iso:.6g}"
            )

    def forecast(self, shape: Shape, machine: Machine | None = None) -> dict[str, float]:
        iso = self.model.iso_sparsity(shape.vocabulary, self.length)
        return super().forecast(shape, machine) | ({} if iso is None else {"iso_sparsity": iso})

    def facts(self, context: Context, ids: int) -> ModelFacts:
        return facts_of(self.model, ids) if self.model.architecture else super().facts(context, ids)

    def origin(self, context: Context) -> Path | None:
        return self.model.checkpoint.fetch(context.scratch) if self.model.checkpoint else None

    def initial(self, context: Context, origin: Path | None) -> tuple[PreTrainedModel, Masks, Weights | None]:
        import torch

        from tasks.data.tokenizer import count_ids, load_tokenizer
        from tasks.models.build.building import builder
        from tasks.models.build.deferred import deferred
        from tasks.train.ready import load

        if origin:
            model, weights = load(origin, context, whole=self.method.reads_weights)
            return model, {}, weights
        tokenizer = load_tokenizer(context.inputs["data"] / "tokenizer")
        config = self.model.initial_config(count_ids(tokenizer))
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = None
        dtype = config.dtype  # what the model is stored in; from_config overwrites it with what it trains in
        model, weights = (deferred(config, self.seed) if context.execution.in_pieces else None) or (None, None)
        if model is None:
            torch.manual_seed(self.seed)
            model = builder(config).from_config(config, dtype=torch.float32)
        model.config.dtype = dtype
        return model, {}, weights
