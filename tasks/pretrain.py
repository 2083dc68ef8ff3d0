"""Pretrain: a model initialised at random, or a user's checkpoint, trained on the corpus under a regime."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.methods import of
from tasks.models.source import ModelSource
from tasks.stage import Context, Facts, Kind
from tasks.train.training import TrainStage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.formats.mask import Masks


class Pretrain(TrainStage):
    """``tokens`` is the compute budget in dense-equivalent tokens; a sparse regime turns what it saves into more."""

    needs: ClassVar[dict[str, Kind]] = {"data": "tokens"}

    model: ModelSource
    method: of("regimes") = "dense"

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.model.architecture:
            self.model.architecture.config(facts.vocabulary)
        elif facts.vocabulary and facts.vocabulary > self.model.config().get("vocab_size", facts.vocabulary):
            raise ValueError(
                f"the tokenizer has {facts.vocabulary} tokens, more than the model's vocab_size "
                f"{self.model.config()['vocab_size']}; take the checkpoint's tokenizer"
            )

    def initial(self, context: Context) -> tuple[PreTrainedModel, Masks]:
        import torch
        from transformers import AutoModelForCausalLM

        from tasks.data.tokenizer import load_tokenizer
        from tasks.models.checkpoint import load_model

        if self.model.checkpoint:
            return load_model(self.model.checkpoint.fetch(context.scratch)).float(), {}
        tokenizer = load_tokenizer(context.inputs["data"] / "tokenizer")
        config = self.model.architecture.config(len(tokenizer))
        config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = None
        dtype = config.dtype    # what the model is stored in; from_config overwrites it with what it trains in
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.config.dtype = dtype
        return model, {}
