"""What the calibrated stages share: which sequences they see, and the walk over the model's blocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.stage import REPORT, Context, ModelStage

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.calibrate.walk import BlockReport


class CalibratedStage(ModelStage):
    """``sequences`` sequences of ``length`` tokens from the calibration split, ``batch`` at a time."""

    method: Any
    sequences: int = Field(128, gt=0)
    length: int = Field(256, ge=2)
    batch: int = Field(16, gt=0)

    def walk(self, context: Context, output: Path, **choices: Any) -> dict[str, float]:
        """Solve every block of the incoming model into ``output``; ``choices`` go to :func:`tasks.calibrate.walk.walk`."""
        import torch

        from tasks.calibrate.walk import walk
        from tasks.data.tokens import calibration_batches
        from tasks.models.blocks import BlockStream

        def tell(block: BlockReport) -> None:
            note = "" if block.error is None else f"error {block.error:.4f}"
            context.progress(block.index + 1, block.depth, "blocks", note)

        drawn = calibration_batches(context.inputs["data"], self.sequences, self.length, self.batch, self.seed)
        batches = [torch.from_numpy(tokens_BT) for tokens_BT in drawn]
        stream = BlockStream(self.incoming(context), output, context.execution.device, context.scratch)
        report = walk(stream, batches, self.method, on_block=tell, **choices)
        rows = [{name: value for name, value in vars(block).items() if name != "depth"} for block in report.blocks]
        (context.output / REPORT).mkdir(parents=True, exist_ok=True)
        (context.output / REPORT / "walk.json").write_text(json.dumps(rows))
        errors = [block.error for block in report.blocks if block.error is not None]
        return {
            "reconstruction_error": sum(errors) / max(1, len(errors)),
            "peak_memory_bytes": float(max(block.peak_bytes for block in report.blocks)),
        }
