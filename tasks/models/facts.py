"""What is known of a model before its weights are read: its modules on the meta device, its vocabulary and its positions.

A stage compares its own fields, its tokenizer and its teacher with it twice: when a plan is made, of what lies on this
machine, and once more when the stage starts, of what does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.tokenizer import Meaning

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from tasks.models.find.linears import Linear
    from tasks.models.source import ModelSource


@dataclass(frozen=True)
class ModelFacts:
    """``skeleton`` is the model on the meta device. A new one is not ``settled`` while its tokenizer is not known, since
    that decides how many rows its embedding gets. ``density`` is the share of its matrices' weights that live, 1 where that is
    not known."""

    skeleton: PreTrainedModel
    settled: bool = True
    density: float = 1.0

    @cached_property
    def linears(self) -> dict[str, Linear]:
        from tasks.models.find.linears import find_linears

        return find_linears(self.skeleton)

    @cached_property
    def rows(self) -> int | None:
        """How many token ids the model can be given; None where that is not settled."""
        table = getattr(self.skeleton.get_input_embeddings(), "weight", None)
        told = self.skeleton.config.get_text_config(decoder=True).vocab_size if table is None else len(table)
        return told if self.settled else None

    @cached_property
    def outputs(self) -> int | None:
        """How many token ids it predicts (the width of its logits); None where that is not settled."""
        head = getattr(self.skeleton.get_output_embeddings(), "weight", None)
        return self.rows if head is None or not self.settled else len(head)

    @property
    def depth(self) -> int:
        return self.skeleton.config.get_text_config(decoder=True).num_hidden_layers

    @property
    def width(self) -> int:
        return self.skeleton.config.get_text_config(decoder=True).hidden_size

    @property
    def heads(self) -> int:
        return self.skeleton.config.get_text_config(decoder=True).num_attention_heads

    @cached_property
    def positions(self) -> int | None:
        return positions(self.skeleton.config)


_SAME_TOKENS = {
    "model": "prepare data with the model's own: tokenizer: earlier, or tokenizer: {checkpoint: PATH}",
    "teacher": "learn from a teacher with the model's tokenizer",
    "logits": "teach with a model that has the model's tokenizer",
    "reference": "compare with a model that has the model's tokenizer",
}


@dataclass(frozen=True)
class Parties:
    """The models and the data of a stage, as far as known. ``ids`` is how many token ids its data may hold: the largest and
    one; ``others`` are the models of a role that takes a list; ``meanings`` says what ids stand for, to the data and to each
    model, by role."""

    ids: int | None = None
    model: ModelFacts | None = None
    teacher: ModelFacts | None = None
    reference: ModelFacts | None = None
    others: tuple[ModelFacts, ...] = ()
    meanings: Mapping[str, Meaning | None] = field(default_factory=dict)

    def check_meanings(self) -> None:
        """Raise ValueError where ids mean one token to one of them and another to another: equal counts do not tell."""
        known = [(role, meaning) for role, meaning in self.meanings.items() if meaning]
        for (role, meaning), (other, theirs) in combinations(known, 2):
            if clash := meaning.clash(theirs):
                remedy = _SAME_TOKENS.get(other, "merge models of one tokenizer")
                raise ValueError(f"the tokenizers of {role} and {other} differ ({clash}); {remedy}")

    def check(self, length: int = 0) -> None:
        """Raise ValueError where they do not fit together, or not with sequences of ``length``."""
        others = {"teacher": self.teacher, "reference": self.reference}
        for role, facts in {"model": self.model, **others}.items():
            if facts and facts.positions and length > facts.positions:
                raise ValueError(f"length {length} is more than the {role}'s {facts.positions} positions")
            if facts and facts.rows and self.ids and self.ids > facts.rows:
                raise ValueError(
                    f"the tokenizer's largest id is {self.ids - 1}, and the {role}'s embedding has {facts.rows} "
                    f"rows; take the {role}'s own tokenizer"
                )
        for role, facts in others.items():
            sizes = [found.outputs for found in (self.model, facts) if found and found.outputs]
            if len(set(sizes)) == 2:
                remedy = {"teacher": "learn from a teacher", "reference": "compare with a model"}[role]
                raise ValueError(
                    f"the {role} tells the odds of {sizes[1]} tokens, the model of {sizes[0]}; {remedy} "
                    "with the model's vocabulary"
                )
        self.check_meanings()


def positions(config: PretrainedConfig) -> int | None:
    """The longest sequence that a model's positions allow; None where they set no bound."""
    text = config.get_text_config(decoder=True)
    return next(filter(None, (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len"))), None)


def facts_of(source: ModelSource, ids: int | None) -> ModelFacts | None:
    """Of where a recipe's model begins, a new one made for ``ids`` token ids; None where it lies elsewhere. Raises ValueError
    where it cannot be built, where its blocks are not understood, or where stored weights are not its own."""
    from tasks.models.build.building import on_meta
    from tasks.models.files.names import fits

    directory = source.checkpoint and source.checkpoint.local
    if source.checkpoint and not directory:
        return None
    config, given = (None, {}) if directory else (source.initial_config(ids), source.architecture.overrides)
    try:
        facts = facts_in(directory) if directory else ModelFacts(on_meta(config), ids is not None or "vocab_size" in given)
    except ValueError:
        raise
    except Exception as error:  # the code of a model trusts its config
        sizes = ", ".join(f"{name} {value!r}" for name, value in given.items())
        what = f"{directory} cannot be built" if directory else f"model type {config.model_type} cannot be built with {sizes}"
        raise ValueError(f"{what}: {type(error).__name__} {' '.join(str(error).split())}") from error
    assert facts.linears
    if directory and "quantization_config" not in source.config():
        fits(directory, facts.skeleton)
    return facts


def facts_in(directory: Path) -> ModelFacts:
    """Of a model directory."""
    from tasks.models.files.checkpoint import skeleton

    return ModelFacts(skeleton(directory))


def ids_in(data: Path) -> int:
    """How many token ids a data directory may hold."""
    from tasks.data.tokenizer import count_ids, load_tokenizer

    return count_ids(load_tokenizer(data / "tokenizer"))


def meanings_in(**directories: Path | None) -> dict[str, Meaning | None]:
    """What ids stand for to each of these, by role: directories of models and tokenizers."""
    return {role: Meaning.of(directory) if directory else None for role, directory in directories.items()}
