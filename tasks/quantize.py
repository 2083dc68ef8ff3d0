"""Quantize: fewer bits under the mask, written with compressed-tensors and read back before anyone may use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from tasks.calibrate.calibration import CalibratedStage
from tasks.calibrate.quantizer import Quantizer
from tasks.context import Context
from tasks.methods import of
from tasks.models.files.schemes import NO_ASYMMETRIC, require_readable
from tasks.stage import Facts

if TYPE_CHECKING:
    from tasks.models.facts import Parties


class Quantize(CalibratedStage):
    """Fewer bits per weight under the mask, stored as serving engines read them."""

    version: ClassVar[int] = 2

    method: Annotated[Quantizer, of("quantizers")]
    """How weights are rounded: a quantizer."""
    kv_cache: Literal["FP8", "INT8"] | None = None
    """Keys and values are cached in 8 bits by what serves the model, with scales from the calibration text; null leaves them
    as they are. vLLM reads FP8."""

    def check(self, facts: Facts) -> None:
        super().check(facts)
        for scheme in self.method.named_schemes():
            require_readable(scheme)
        if not self.method.symmetric:
            raise ValueError(NO_ASYMMETRIC)
        if any(getattr(stage, "shrinks", False) for stage in facts.upstream):
            raise ValueError(
                "no quantized format has feed-forward networks of different widths; prune with cfsp: {shrink: false}"
            )

    def check_parties(self, parties: Parties) -> None:
        super().check_parties(parties)
        if parties.model:
            from tasks.formats.pattern import parse_pattern
            from tasks.models.files.packable import require_packable

            linears = parties.model.linears.items()
            changed = [name for name, linear in linears if self.method.scheme_of(linear).weights is not None]
            require_packable(parties.model.skeleton, changed)
            self.method.admit(parties.model.linears, {}, parse_pattern("unstructured"))
            if self.kv_cache:
                from tasks.models.files.kv_cache import require_cached

                require_cached(parties.model.skeleton, [self.method.scheme_of(linear) for _, linear in linears])

    def check_width(self, width: int) -> None:
        self.method.check_width(width)

    def run(self, context: Context) -> dict[str, float]:
        from tasks.models.build.surgery import surgeries_of
        from tasks.models.files.checkpoint import load_extras, skeleton
        from tasks.models.files.gate import READER
        from tasks.models.files.kv_cache import KVCache
        from tasks.models.files.quantized import export_compressed

        plain = not surgeries_of(skeleton(self.incoming(context)).config)  # else its export will be, without them
        if plain:
            READER.start()
        solved = context.scratch / "dequantized"  # its export is the artifact
        report = self.walk(context, solved)
        cache = KVCache(self.kv_cache, self.batches(context)) if self.kv_cache else None
        scheme_of, data = self.method.scheme_of, context.inputs["data"]
        found = export_compressed(solved, load_extras(solved), scheme_of, context.output, data, plain, cache)
        return {**report, "export_logits_error": found["logits_difference"]}
