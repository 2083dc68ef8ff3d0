"""A step of recovery by distillation: the teacher asked at every step, or read from what was written down of it once.

Both take turns with a step that minimises cross-entropy alone. What a student of written logits does without is the teacher's
forward pass and its weights; what it needs is the disk, by the token of the text, and the time to write it, once for all
students.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import quickstart
from tests.bench.measured import Measured, clock, median, spread, take_turns

ROUNDS, BATCHES, K = 9, 4, 64


class Student:
    """A pruned quickstart model that minimises an objective; ``step`` gives its seconds."""

    def __init__(self, sampler: Any, objective: str | dict[str, Any], teacher: Any = None) -> None:
        from tasks.methods import build
        from tasks.train.engine import TorchEngine, adamw
        from tasks.train.hook import Run

        model = quickstart.model()
        self.run, self.sampler = Run(TorchEngine(model, adamw(model), 1.0), BATCHES), sampler
        self.loss = build("objectives", objective).bind(teacher)

    def step(self) -> float:
        from tasks.train.loop import _accumulate

        begun = clock()
        _accumulate(self.run, self.sampler, self.loss, None)
        self.run.engine.step(1e-3)
        self.run.step = (self.run.step + 1) % BATCHES
        return clock() - begun


def measure() -> list[Measured]:
    from tasks.train.written import Description, Written, bytes_per_token, write

    with tempfile.TemporaryDirectory() as directory:
        sampler = quickstart.sampler(Path(directory), BATCHES)
        teacher, length, rows = quickstart.model().eval().requires_grad_(False), sampler.length, BATCHES * sampler.batch
        vocabulary, files = teacher.config.vocab_size, Path(directory) / "logits"
        files.mkdir()
        begun = clock()
        said = Description(K, 2.0, length, vocabulary, rows, rows, False)
        size = write(files, said, teacher, sampler.tokens, range(rows), 1 << 30, lambda done: None)
        seconds = clock() - begun
        students = {
            "plain": Student(sampler, "cross_entropy"),
            "live": Student(sampler, {"top_k": {"k": K}}, teacher),
            "read": Student(Written(files).beside(sampler), {"top_k": {"k": K, "precomputed": True}}),
        }
        contestants: dict[str, Callable[[], float]] = {name: student.step for name, student in students.items()}
        contestants["teacher"] = lambda: forward(teacher, sampler)
        rounds = take_turns(contestants, ROUNDS)
    held = sum(parameter.numel() * parameter.element_size() for parameter in teacher.parameters())
    return [
        *steps(rounds),
        Measured(
            "recovery.precomputed.disk", size / (rows * (length - 1)), bytes_per_token(K, vocabulary) * 1.02, by_token(), "B"
        ),
        Measured(
            "recovery.precomputed.memory", held / 2**20, None, "weights of the teacher that a student does not hold", "MiB"
        ),
        Measured("recovery.precomputed.write", seconds / BATCHES, None, "s to write the logits of a batch, once", "s"),
    ]


def steps(rounds: list[dict[str, float]]) -> list[Measured]:
    def against(ours: str, *others: str) -> Callable[[dict[str, float]], float]:
        return lambda seconds: seconds[ours] / sum(seconds[other] for other in others)

    said = {name: f"{1000 * median(rounds, lambda seconds, name=name: seconds[name]):.0f} ms" for name in rounds[0]}
    lines = []
    for name, bar, ratio, what in (
        ("live", None, against("live", "plain", "teacher"), "top_k of a live teacher / plain step and teacher's forward"),
        ("precomputed", 1.0, against("read", "live"), "top_k of written logits / of a live teacher"),
        ("precomputed.plain", None, against("read", "plain"), "top_k of written logits / cross-entropy alone"),
    ):
        told = f"{what}, {said['read' if name != 'live' else 'live']}; {spread(rounds, ratio)}"
        lines.append(Measured(f"recovery.{name}", median(rounds, ratio), bar, told))
    return lines


def forward(teacher: Any, sampler: Any) -> float:
    import torch

    begun = clock()
    with torch.no_grad():
        teacher(input_ids=sampler.at(0).tokens, use_cache=False)
    return clock() - begun


def by_token() -> str:
    return f"bytes of a predicted token on disk: {K} ids and log-probabilities of two bytes, and one of the rest"
