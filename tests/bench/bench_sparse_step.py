"""A training step under a held 50 % mask against the dense step of the same engine, model and batch.

Masks save nothing on dense hardware, so they had better cost nothing: one product per gradient, and the accounting of
the hook. A second line adds what deciding costs, an event of gradual pruning every ten steps (the quickstart's interval),
which reads every weight and ranks them all. The three take turns on one engine, a step each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.train.hook import Hook
from tests.bench import quickstart
from tests.bench.measured import Measured, clock, median, spread, take_turns

if TYPE_CHECKING:
    from tasks.train.engine import Engine

ROUNDS = 20


class Stopwatch(Hook):
    """Times the one step of a run; as its last hook it leaves out the first masks and counts the event of the step."""

    def on_start(self, run: Any) -> None:
        self.begun = clock()

    def after_step(self, run: Any) -> None:
        self.seconds = clock() - self.begun


def measure() -> list[Measured]:
    from cluster.deepspeed.engine import DeepSpeedEngine
    from tasks.train.engine import TorchEngine, adamw

    lines = []
    for kind, build in {"torch": TorchEngine, "deepspeed": DeepSpeedEngine}.items():
        model = quickstart.model()
        engine = build(model, adamw(model), 1.0)  # DeepSpeed: ZeRO-1, one rank
        lines += compare(kind, engine)
    return lines


def compare(kind: str, engine: Engine) -> list[Measured]:
    from tasks.models.find.linears import find_linears
    from tasks.train.masking import GradualMagnitude
    from tasks.train.schedule import ExponentialDensity

    linears, interval = find_linears(engine.module), quickstart.stage("pretrain")["method"]["gradual"]["interval"]
    once = ExponentialDensity(0.5, start=0, end=0, interval=1)  # the event comes before the first step
    always = ExponentialDensity(0.5, start=0, end=1, interval=1)
    with tempfile.TemporaryDirectory() as directory:
        sampler = quickstart.sampler(Path(directory), 1)

        def run(hook: Hook) -> float:
            for name in linears:
                engine.release(name)
            return train(engine, sampler, hook)

        rounds = take_turns(
            {
                "dense": lambda: run(Hook()),
                "held": lambda: run(GradualMagnitude(linears, {}, once, "global")),
                "event": lambda: run(GradualMagnitude(linears, {}, always, "global")),
            },
            ROUNDS,
        )

    def held(seconds: dict[str, float]) -> float:
        return seconds["held"] / seconds["dense"]

    def gradual(seconds: dict[str, float]) -> float:
        return (seconds["held"] + (seconds["event"] - seconds["held"]) / interval) / seconds["dense"]

    step = 1000 * median(rounds, lambda seconds: seconds["dense"])
    event = 1000 * median(rounds, lambda seconds: seconds["event"] - seconds["held"])
    return [
        Measured(
            f"sparse_step.{kind}",
            median(rounds, held),
            1.05,
            f"50 % mask held / dense step of {step:.0f} ms; {spread(rounds, held)}",
        ),
        Measured(
            f"sparse_step.{kind}.gradual",
            median(rounds, gradual),
            None,
            f"the same with an event of {event:.0f} ms every {interval} steps / dense step",
        ),
    ]


def train(engine: Engine, sampler: Any, hook: Hook) -> float:
    """Seconds of a step."""
    from tasks.objectives.cross_entropy import CrossEntropy
    from tasks.train.loop import fit
    from tasks.train.schedule import LearningRate

    watch = Stopwatch()
    fit(engine, sampler, CrossEntropy().bind(), [hook, watch], 1, LearningRate(1e-3, 1))
    return watch.seconds
