"""Recover: finetune a pruned model under its mask, by default distilling from the model that went into the pruning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator, model_validator

from tasks.calibrate.quantizer import INTEGERS, Quantizer
from tasks.context import Context
from tasks.methods import names, of
from tasks.models.files.schemes import presets, read_scheme, require_readable
from tasks.models.source import ModelSource, Stored
from tasks.stage import Facts, Kind, Stage
from tasks.train.regime import Regime, Setting
from tasks.train.training import TrainStage
from tasks.train.until import Until

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from compressed_tensors.quantization import QuantizationScheme
    from transformers import PreTrainedModel

    from tasks.context import Execution
    from tasks.formats.mask import Masks
    from tasks.models.accounting import Shape
    from tasks.models.facts import ModelFacts, Parties
    from tasks.train.birth import Weights
    from tasks.train.cost import Running
    from tasks.train.hook import Hook


class Recover(TrainStage):
    """Finetunes a pruned model under its mask, by default distilling from the model that went into the pruning."""

    version: ClassVar[int] = 2
    needs: ClassVar[dict[str, Kind]] = {"data": "tokens", "model": "model", "teacher": "model", "logits": "logits"}

    model: ModelSource | None = None
    """The model to recover where no earlier stage made one; the recipe's ``model`` unless given."""
    teacher: Stored | None = None  # set by the recipe where the pruning began at a user's checkpoint
    """The model to learn from where it is no earlier stage; by default the one that went into the pruning."""
    method: Annotated[Regime, of("regimes")] = Field("masked", validate_default=True)
    """How it is finetuned: a regime."""
    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate of AdamW."""

    fake_quantize: Annotated[Quantizer | None, of("quantizers", optional=True)] = None
    """Trains for the rounding that follows: forward passes see weights as round_to_nearest of this scheme rounds them, and
    gradients pass straight through. Written as in the quantize stage, {round_to_nearest: {bits: 4, group_size: 64}}."""

    until: Until | None = None
    """Ends the run once the held-out text is foretold so well, ``{perplexity: 30}``, or once that is out of reach."""

    @field_validator("fake_quantize", mode="before")
    @classmethod
    def _names_what_training_rounds_by(cls, given: object) -> object:
        named = next(iter(given), None) if isinstance(given, dict) else given
        if isinstance(named, str) and named not in names("quantizers"):
            fields = ", ".join((*INTEGERS, "scheme", "schemes"))
            raise ValueError(
                f"training rounds by no {named!r}; write round_to_nearest, or {{round_to_nearest: {{FIELD: value}}}} with some "
                f"of the fields {fields}"
            )
        return given

    @model_validator(mode="after")
    def _fakes_what_is_rounded_alone(self) -> Recover:
        if (method := self.fake_quantize) is None:
            return self
        if method.name != "round_to_nearest":
            raise ValueError(f"fake_quantize: {method.name} rounds by calibration text; choose round_to_nearest")
        if method.range != "minmax":
            raise ValueError(f"fake_quantize: range {method.range} is no range that training fits anew; choose minmax")
        return self

    @model_validator(mode="after")
    def _reads_one_text(self) -> Recover:
        if self.method.needs_sequence and self.minimised.written():
            raise ValueError(f"{self.method.name} chooses what it sees, and logits are of one text; leave precomputed out")
        return self

    def check(self, facts: Facts) -> None:
        super().check(facts)
        if self.fake_quantize:
            self._require_fakeable(self.fake_quantize, _known(self.fake_quantize))
            if (surgery := self.method.surgery()) and surgery.unpacked:
                raise ValueError(f"fake_quantize: {self.method.name} makes what cannot be quantized: {surgery.unpacked}")

    def reshaped(self, facts: ModelFacts) -> ModelFacts:
        return replace(facts, density=1.0) if self.method.masks in ("dropped", "open") else facts

    def check_width(self, width: int) -> None:
        super().check_width(width)
        if self.fake_quantize:
            self.fake_quantize.check_width(width)

    def check_parties(self, parties: Parties) -> None:
        super().check_parties(parties)
        if self.fake_quantize and parties.model:
            from tasks.formats.pattern import parse_pattern
            from tasks.models.files.packable import require_packable

            linears = parties.model.linears
            schemes = {name: self.fake_quantize.scheme_of(linear) for name, linear in linears.items()}
            require_packable(parties.model.skeleton, [name for name in schemes if schemes[name].weights is not None])
            self._require_fakeable(self.fake_quantize, schemes.values())
            self.fake_quantize.admit(linears, dict.fromkeys(linears, 0.0), parse_pattern("unstructured"))

    @staticmethod
    def _require_fakeable(method: Quantizer, schemes: Iterable[QuantizationScheme]) -> None:
        """Raise ValueError where a scheme cannot be stored, or rounds more than weights."""
        schemes = list(schemes)
        require_readable(schemes)
        if any(scheme.input_activations is not None for scheme in schemes):
            raise ValueError(
                "fake_quantize: weights alone are rounded in training, and the scheme rounds inputs too; choose one that does "
                f"not: {', '.join(_fakeable(method))}"
            )

    def step_on(self, execution: Execution, teacher: Shape | None) -> Running:
        return replace(super().step_on(execution, teacher), faked=self.fake_quantize is not None)

    def shape(self, context: Context, model: PreTrainedModel, setting: Setting) -> None:
        if self.fake_quantize:
            from tasks.models.files.checkpoint import skeleton
            from tasks.train.fake_quantized import fake_quantize

            grids = {name: grid for name, linear in setting.linears.items() if (grid := self.fake_quantize.grid_of(linear))}
            stored = dict(skeleton(self.incoming(context)).named_parameters())
            fake_quantize(model, setting.linears, grids, {name: stored[name].dtype for name in grids})

    def reads(self) -> dict[str, int]:
        return super().reads() | ({"heldout": self.length} if self.until else {})

    def watchers(self, context: Context) -> list[Hook]:
        if self.until is None:
            return []
        from tasks.train.advisor import Advisor

        return [Advisor(self.until, context.inputs["data"], self.length, self.batch * self.length, context.note)]

    def roles(self) -> dict[str, Kind]:
        roles = dict(self.needs)
        if not self.needs_teacher() or self.teacher:
            del roles["teacher"]
        if not self.minimised.written():
            del roles["logits"]
        return roles

    def check_written_logits(self, teach: Stage, id: str) -> None:
        """Raise ValueError where the logits of a stage are not what this one reads of what it sees."""
        for field, ours in {**self.minimised.written(), "length": self.length}.items():
            if (theirs := getattr(teach, field)) != ours:
                raise ValueError(f"{field} {ours:g} is not that of the logits of {id}, {theirs:g}; set one to the other")
        if (tokens := getattr(teach, "tokens", None)) is None:
            return
        if teach.seed != self.seed:
            raise ValueError(
                f"seed {self.seed} sees other tokens first than seed {teach.seed} of {id}; leave tokens out of {id}, "
                "which then serves every seed"
            )
        if (seen := self.steps * self.batch * self.length) > tokens:
            raise ValueError(f"it sees {seen:,} tokens, and the logits of {id} are of {tokens:,}; raise tokens of {id}")

    def initial(self, context: Context, origin: Path) -> tuple[PreTrainedModel, Masks, Weights | None]:
        from tasks.formats.mask import load_masks
        from tasks.models.files.layout import MASKS
        from tasks.train.ready import load

        model, weights = load(origin, context, whole=self.method.reads_weights)
        if "logits" in context.inputs:
            from tasks.train.written import Written

            Written(context.inputs["logits"]).require_vocabulary(model.config.get_text_config(decoder=True).vocab_size)
        return model, load_masks(origin / MASKS), weights

    def teacher_directory(self, context: Context) -> Path | None:
        if not self.needs_teacher():
            return None
        return self.teacher.checkpoint.fetch(context.scratch) if self.teacher else context.inputs.get("teacher")


def _known(method: Quantizer) -> list[QuantizationScheme]:
    """The schemes that are named; ValueError, with those that training can round by, where there is no such one."""
    for spec in (method.scheme, *method.schemes.values()):
        name = next(iter(spec)) if isinstance(spec, dict) else spec
        if name is not None and name not in presets():
            raise ValueError(f"fake_quantize: no scheme {name!r}; choose one of {', '.join(_fakeable(method))}")
    return method.named_schemes()


def _fakeable(method: Quantizer) -> list[str]:
    """The presets that round weights alone, as far as a quantizer makes them."""
    return [name for name in presets() if method.makes(name) and read_scheme(name).input_activations is None]
