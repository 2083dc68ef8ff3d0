"""What the calibrated stages share: which sequences they see, and the walk over the model's blocks."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tasks.calibrate.method import BlockMethod
from tasks.context import Context
from tasks.methods import dump
from tasks.stage import REPORT, ModelStage
from tasks.workers import Worker

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tasks.calibrate.report import BlockReport, WalkReport
    from tasks.data.batch import Batch
    from tasks.models.accounting import Shape
    from tasks.models.stream.activations import MemoryBudget
    from tasks.train.cost import Machine


PARTS = "parts"  # the folder of a walk that holds its finished blocks, and what was decided before them


class CalibratedStage(ModelStage):
    """``sequences`` sequences of ``length`` tokens from the calibration split, ``batch`` at a time."""

    frugal: ClassVar[bool] = True

    unreached: ClassVar[str] = "rounded to nearest"  # what is done to a matrix that no calibration token reached

    method: BlockMethod
    sequences: int = Field(128, gt=0)
    """Calibration sequences, drawn without repetition from the calibration text."""
    length: int = Field(256, ge=2)
    """Tokens per calibration sequence."""
    batch: int = Field(16, gt=0)
    """Calibration sequences computed at once."""

    @property
    def passes(self) -> int:
        """Forward passes over the calibration sequences: a walk makes two."""
        return 2

    def reads(self) -> dict[str, int]:
        return {"calibration": self.sequences * self.length}

    def forecast(self, shape: Shape, machine: Machine | None = None) -> dict[str, float]:
        tokens, block = self.sequences * self.length, 4 * shape.prunable // max(1, shape.layers)
        return {
            "tokens": tokens,
            "flops": self.passes * shape.forward_flops(self.length) * tokens,
            "memory_bytes": 4 * block + 8 * tokens * shape.hidden,
        }

    def drawn(self, context: Context) -> list[Batch]:
        """The calibration sequences, with what a model is to predict of them."""
        from tasks.data.tokens import calibration_batches

        return list(calibration_batches(context.inputs["data"], self.sequences, self.length, self.batch, self.seed))

    def batches(self, context: Context) -> list[torch.Tensor]:
        """The calibration sequences as tokens int64 [B, T]: what a walk reads."""
        return [batch.tokens for batch in self.drawn(context)]

    def memory(self, context: Context) -> MemoryBudget:
        """The memory that the activations may take; what is left over from an attempt that died is cleared."""
        from tasks.models.stream.activations import MemoryBudget

        folder = context.scratch / "activations"
        shutil.rmtree(folder, ignore_errors=True)
        return MemoryBudget(context.execution.activation_bytes, folder)

    def walk(self, context: Context, output: Path, place: str = "walk", title: str = "", **choices: Any) -> dict[str, float]:
        """Solve every block of the incoming model into ``output``; ``choices`` go to :func:`tasks.calibrate.walk.walk`, and
        ``title`` tells people this walk from others of the stage.

        The walk is kept in scratch, in ``place``, where an attempt that follows a crash takes it up.
        """
        from tasks.calibrate.walk import walk
        from tasks.models.stream.blocks import BlockStream

        def tell(block: BlockReport) -> None:
            note = "" if block.error is None else f"error {block.error:.4f}"
            note = "finished by an earlier attempt" if block.index < finished else note
            context.progress(block.index + 1, block.depth, "blocks", f"{title} {note}".strip())

        made = context.scratch / place / "model"
        stream = BlockStream(
            self.incoming(context), made, context.execution.device, context.scratch, context.scratch / place / PARTS
        )
        finished, batches = len(stream.finished()), self.batches(context)
        workers = self._start_workers(context, batches)
        report = walk(stream, batches, self.method, memory=self.memory(context), workers=workers, on_block=tell, **choices)
        _link(made, output)
        rows = [{name: value for name, value in vars(block).items() if name != "depth"} for block in report.blocks]
        (context.output / REPORT).mkdir(parents=True, exist_ok=True)
        (context.output / REPORT / "walk.json").write_text(json.dumps(rows))
        for remark in [*report.remarks(self.unreached), *self.method.remarks(report)]:
            context.note(f"{title}: {remark}" if title else remark)
        self.judge(report)
        errors = [block.error for block in report.blocks if block.error is not None]
        unseen = {"unseen_matrices": float(len(report.unseen))} if report.unseen else {}
        return {"reconstruction_error": sum(errors) / max(1, len(errors)), **unseen}

    def judge(self, report: WalkReport) -> None:
        """Raise ValueError where a walk did not do what was asked for."""

    def _start_workers(self, context: Context, batches: list[torch.Tensor]) -> list[Worker]:
        """Workers for all parts of the sequences but the first."""
        from tasks.calibrate.data_parallel import deal

        shelf = type(self.method).__module__.split(".")[1]
        common = {
            "model": str(self.incoming(context)),
            "device": context.execution.device,
            "activation_bytes": context.execution.activation_bytes,
            "method": (shelf, dump(self.method)),
        }
        _, *others = deal(batches, context.execution.workers)
        return context.start_workers(
            "tasks.calibrate.worker:CalibrationWorker",
            [
                {**common, "scratch": str(context.scratch / f"worker-{number}"), "tokens": [tokens.tolist() for tokens in part]}
                for number, part in enumerate(others, 1)
            ],
        )


def _link(source: Path, target: Path) -> None:
    """The same files in another folder; copies where the disk is another."""
    for file in (path for path in source.rglob("*") if path.is_file()):
        other = target / file.relative_to(source)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        try:
            os.link(file, other)
        except OSError:
            shutil.copyfile(file, other)
