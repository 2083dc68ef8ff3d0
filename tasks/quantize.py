"""Quantize: fewer bits under the mask, written with compressed-tensors and read back before anyone may use it."""

from __future__ import annotations

import json
from math import ceil
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.calibrate.calibration import PARTS, CalibratedStage
from tasks.calibrate.precision import Precision, stored_bits
from tasks.calibrate.quantizer import INTEGERS, Quantizer
from tasks.context import Context
from tasks.methods import of
from tasks.models.files.schemes import packed, require_readable
from tasks.stage import REPORT, Facts

if TYPE_CHECKING:
    from tasks.formats.pattern import Pattern
    from tasks.models.facts import Parties

SAID = (*INTEGERS, "scheme", "schemes")
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # by runtimes, into one matrix with one scheme


class Quantize(CalibratedStage):
    """Fewer bits per weight under the mask, stored as serving engines read them."""

    version: ClassVar[int] = 4

    method: Annotated[Quantizer, of("quantizers")]
    """How weights are rounded: a quantizer."""
    kv_cache: Literal["FP8", "INT8"] | None = None
    """Keys and values are cached in 8 bits by what serves the model, with scales from the calibration text; null leaves them
    as they are. vLLM reads FP8."""
    pattern: str | None = Field(None, examples=["unstructured", "2:4"])
    """For a method that prunes as well (joint): which weights compete and what the mask promises, as in prune."""
    sparsity: float | None = Field(None, ge=0, lt=1)
    """For a method that prunes as well: share of the prunable weights to prune; an N:M pattern fixes it."""
    precision: Precision | None = None
    """A scheme for each matrix instead of one for all, chosen under a budget by what it costs."""

    def check_written(self) -> None:
        if self.precision and (said := [name for name in SAID if name in self.method.model_fields_set]):
            raise ValueError(f"precision chooses what {self.method.name}.{said[0]} says; leave one of them out")

    @model_validator(mode="after")
    def _agree(self) -> Quantize:
        if self.method.prunes and self.pattern is None and self.sparsity is None:
            raise ValueError(f"{self.method.name} prunes as well; say pattern or sparsity")
        if said := [name for name in ("pattern", "sparsity") if getattr(self, name) is not None and not self.method.prunes]:
            raise ValueError(f"{said[0]}: {self.method.name} keeps the masks it is given; leave it out, or choose joint")
        if self.method.prunes:
            self._pattern().check(self._target(), self._pattern().width_multiple)
        return self

    def _pattern(self) -> Pattern:
        from tasks.formats.pattern import parse_pattern

        return parse_pattern(self.pattern or "unstructured")

    def _target(self) -> float:
        """The sparsity to reach; 0 where nothing is pruned."""
        fixed = getattr(self._pattern(), "sparsity", None)
        if self.method.prunes and self.sparsity is None and fixed is None:
            raise ValueError(f"sparsity is needed with pattern {self.pattern}")
        return (fixed or 0.0) if self.sparsity is None else self.sparsity

    @property
    def passes(self) -> int:
        """A look at the dense model besides, and a trial of each choice for what reads one input, mostly four a block."""
        if self.precision is None:
            return super().passes
        trials = 4 * len(self.precision.choices) * self.precision.sequences / self.sequences
        return super().passes + 1 + ceil(trials)

    def leaves(self, pattern: str | None) -> str | None:
        return str(self._pattern()) if self.method.prunes else pattern

    def stored_bits(self, width: int) -> float | None:
        """Of a prunable weight with its share of a scale, where matrices read ``width`` inputs; None where they have schemes of
        their own."""
        if self.precision:
            return self.precision.budget
        scheme = None if self.method.schemes else self.method.scheme_of_all()
        return stored_bits((1, width), scheme) / width if scheme and scheme.weights else None

    def check(self, facts: Facts) -> None:
        super().check(facts)
        require_readable(self.method.named_schemes())
        if self.precision:
            require_readable(self.precision.schemes(self.method))
        if any(getattr(stage, "uneven", False) for stage in facts.upstream):
            raise ValueError(
                "no quantized format has feed-forward networks of different widths; prune with cfsp: {shrink: false}"
            )

    def doubts(self, facts: Facts) -> list[str]:
        """Where few bits take a byte each, what runtimes fuse differs, or the model was trained for another rounding."""
        return [*self._roomy(), *self._unfused(), *self._untrained(facts)]

    def _roomy(self) -> list[str]:
        named = self.precision.schemes(self.method) if self.precision else self.method.named_schemes()
        few = sorted({its.weights.num_bits for its in named if its.weights and its.weights.num_bits < 8 and not packed(its)})
        said = "compressed-tensors stores weights whose inputs are rounded too in a byte each, and packs none"
        return [f"{' and '.join(f'{bits}-bit' for bits in few)} weights will take 8 bits: {said}"] if few else []

    def _unfused(self) -> list[str]:
        """Names may be longer than that of the module: self_attn.v_proj, or 3.self_attn.v_proj for one block's."""
        named = [part.rpartition(".") for part in self.method.schemes]
        told = {
            ", ".join(names): {str(self.method.spec_named(name)) for name in names}
            for stem, dot, leaf in named
            for parts in FUSED
            if leaf in parts and (names := [f"{stem}{dot}{part}" for part in parts])
        }
        return [
            f"vLLM makes one matrix of {names}, and refuses models where their schemes differ; name one for all"
            for names, specs in told.items()
            if len(specs) > 1
        ]

    def _untrained(self, facts: Facts) -> list[str]:
        faked = ((stage.stage_name(), getattr(stage, "fake_quantize", None)) for stage in facts.upstream)
        name, trained = next((one for one in faked if one[1]), ("", None))
        if trained is None:
            return []
        what = "precision chooses a scheme for each matrix" if self.precision else _other(self.method, trained)
        meant = f"{name} trained for round_to_nearest as its fake_quantize says"
        return [f"{what}, but {meant}; what is stored is not what was trained"] if what else []

    def check_parties(self, parties: Parties) -> None:
        super().check_parties(parties)
        if parties.model:
            from tasks.models.files.packable import require_packable

            linears = parties.model.linears.items()
            schemes = {name: self.method.scheme_of(linear) for name, linear in linears}
            require_packable(parties.model.skeleton, [name for name in schemes if schemes[name].weights is not None])
            require_readable(schemes.values())
            if self.kv_cache:
                from tasks.models.files.kv_cache import require_cached

                may_become = self.precision.schemes(self.method) if self.precision else schemes.values()
                require_cached(parties.model.skeleton, may_become)
            if self.precision:
                self.precision.check(self.method, parties.model.linears)
                return
            allocation = dict.fromkeys(parties.model.linears, self._target())
            self.method.admit(parties.model.linears, allocation, self._pattern())

    def check_width(self, width: int) -> None:
        if not self.precision:
            self.method.check_width(width)
        self._pattern().check(self._target(), width, width)

    def run(self, context: Context) -> dict[str, float]:
        from tasks.models.build.surgery import surgeries_of
        from tasks.models.export import export_compressed
        from tasks.models.files.checkpoint import load_extras, skeleton
        from tasks.models.files.gate import READER
        from tasks.models.files.kv_cache import KVCache

        plain = not surgeries_of(skeleton(self.incoming(context)).config)  # else its export will be, without them
        if plain:
            READER.start()
        solved = context.scratch / "dequantized"  # its export is the artifact
        if solved.exists():  # of an attempt whose method had more to say of a matrix
            rmtree(solved)
        made = self._settled(context)
        report = made.walk(context, solved, pattern=self._pattern(), sparsity=self._target())
        cache = KVCache(self.kv_cache, self.batches(context)) if self.kv_cache else None
        scheme_of, data, memory = made.method.scheme_of, context.inputs["data"], self.memory(context)
        found = export_compressed(solved, load_extras(solved), scheme_of, context.output, data, plain, cache, memory)
        return {**report, "export_logits_error": found["logits_difference"]}

    def _settled(self, context: Context) -> Quantize:
        """The stage with a scheme for each matrix, chosen once; in the report for people to read."""
        if self.precision is None:
            return self
        from tasks.calibrate.scan import scan
        from tasks.models.stream.blocks import BlockStream
        from tasks.models.stream.kept import keep, kept

        made = context.scratch / "walk" / PARTS / "precision.json"
        schemes = kept(made)
        if schemes is None:
            stream = BlockStream(self.incoming(context), None, context.execution.device, context.scratch)
            schemes = self.precision.choose(self.method, scan(stream, self.batches(context), self.memory(context)))
            made.parent.mkdir(parents=True, exist_ok=True)
            keep(schemes, made)
        (context.output / REPORT).mkdir(parents=True, exist_ok=True)
        (context.output / REPORT / "schemes.json").write_text(json.dumps(schemes, indent=2))
        return self.model_copy(update={"method": self.method.model_copy(update={"schemes": schemes})})


def _other(method: Quantizer, trained: Quantizer) -> str:
    """What tells a rounding from the one trained for, be they said by bits or by a preset; empty where they store the same."""
    if method.name != trained.name:
        return f"{method.name} rounds"
    if method.range != trained.range:
        return f"range is {method.range}"
    ours, theirs = _weights(method), _weights(trained)
    differing = [f"{name} is {ours.get(name)}, not {theirs.get(name)}" for name in theirs if ours.get(name) != theirs[name]]
    return ", ".join(differing) or ("schemes differ" if method.schemes != trained.schemes else "")


def _weights(method: Quantizer) -> dict[str, object]:
    """How a method stores weights that ``schemes`` says nothing of; empty where it leaves them as they are."""
    from tasks.models.files.schemes import integers

    integer = [getattr(method, name) for name in INTEGERS]
    stored = (method.named_schemes()[0] if method.scheme else integers(*integer)).weights
    told = {"bits": "num_bits", "group_size": "group_size", "symmetric": "symmetric", "type": "type"}
    return {name: getattr(stored, field) for name, field in told.items()} if stored else {}
