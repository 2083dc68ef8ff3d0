"""Where one run of a stage stands: its folders, the machine at hand, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cluster.ray.events import Event, Metrics, Note, Progress
from tasks.workers import Worker, start_here

if TYPE_CHECKING:
    from tasks.train.birth import MakeEngine


CHECKPOINTS = "checkpoints"  # in the scratch of a stage that trains


@dataclass
class Context:
    """The surroundings of one run of a stage. ``execution`` comes from the profile: it may change speed, never results.
    ``start_workers`` makes an object of a target (``module:Class``) per payload, each on a worker where there is a cluster."""

    inputs: dict[str, Path]
    output: Path
    scratch: Path
    execution: Execution
    report: Callable[[Event], None] = lambda event: None
    make_engine: MakeEngine | None = None
    start_workers: Callable[[str, list[dict[str, object]]], list[Worker]] = start_here

    @property
    def checkpoints(self) -> Path:
        return self.scratch / CHECKPOINTS

    def log(self, metrics: dict[str, float], step: int) -> None:
        """One point of the stage's curves; kept in the artifact and streamed to whoever watches."""
        self.report(Metrics(step, metrics))

    def progress(self, done: int, total: int, unit: str, note: str = "") -> None:
        self.report(Progress(done, total, unit, note))

    def note(self, text: str) -> None:
        """A line that people must see."""
        self.report(Note(text))


@dataclass(frozen=True)
class Execution:
    """How the machine at hand runs a stage: the part of a profile that reaches the tasks."""

    rank: int = 0
    ranks: int = 1
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    engine: Literal["torch", "deepspeed"] = "torch"
    zero: int = 0
    offload: Literal["none", "optimizer"] = "none"  # what lies in host memory
    threads: int | None = None
    micro_batch: int | None = None
    logits_bytes: int = 1 << 30  # of float32 logits held at once in training
    compile: bool = False  # the blocks of what is trained, and of its teacher
    recompute: Literal["none", "selective", "layer", "auto"] = "none"  # what the backward pass makes again
    checkpoint_every_seconds: float = 60.0
    attempt: int = 0
    patience: float = 600.0  # seconds without a finished step, after which ranks that wait for each other end
    workers: int = 1  # share out the calibration sequences, and what takes long to solve
    activation_bytes: int = 8 << 30  # of calibration activations in host memory; the rest lies on the scratch disk

    @property
    def in_pieces(self) -> bool:
        """Whether a parameter is whole only while the module that owns it runs (ZeRO-3), and no rank holds the model."""
        return self.engine == "deepspeed" and self.zero == 3
