"""A step of every sparse regime against the dense step of the same engine, model and batch.

Held masks cost a product per gradient; a mask update of RigL or SET costs a reading of every weight (and gradient) and
two rankings, shared by the steps between two updates; N:M regimes choose a mask in every forward pass.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import quickstart
from tests.bench.measured import Measured, clock, median, spread, take_turns

ROUNDS = 9
HELD = {"static": {"sparsity": 0.75}, "gradual": {"sparsity": 0.5, "interval": 10}}
MOVING = {"rigl": {"sparsity": 0.75}, "set": {"sparsity": 0.75}, "dsl": {"sparsity": 0.75}}
STRUCTURED: dict[str, dict[str, Any]] = {
    "ste": {},
    "sr_ste": {},
    "mdgf_linear": {"location": "all"},
    "mdgf_exponential": {"location": "all"},
    "sdgf_stepwise": {"location": "all"},
    "sdgf_geometric": {"location": "all"},
    "s_ste": {"mvue": False},
    "fst": {"mvue": False},
}
ESTIMATED = {"s_ste": {"mvue": True}}
UPDATES_EVERY = 100


class Trainee:
    """A model under a regime in the middle of a long run; ``step`` gives its seconds."""

    def __init__(self, name: str, fields: dict[str, Any], sampler: Any) -> None:
        from tasks.methods import build
        from tasks.models.find.linears import find_linears
        from tasks.train.engine import TorchEngine, adamw
        from tasks.train.hook import Run
        from tasks.train.regime import Setting

        model, steps = quickstart.model(), 1000
        regime = build("regimes", {name: fields})
        self.hooks = regime.hooks(Setting(find_linears(model), {}, steps, steps))
        self.run, self.sampler = Run(TorchEngine(model, adamw(model), 1.0), steps), sampler
        for hook in self.hooks:
            hook.on_start(self.run)
        self.run.step = 401  # between two updates of anything

    def step(self) -> float:
        from tasks.objectives.cross_entropy import CrossEntropy
        from tasks.train.loop import _accumulate

        begun = clock()
        _accumulate(self.run, self.sampler, CrossEntropy().bind(), None)
        for hook in self.hooks:
            hook.after_backward(self.run)
        self.run.engine.step(1e-3)
        for hook in self.hooks:
            hook.density(), hook.compute()
            hook.after_step(self.run)
        return clock() - begun

    def update(self) -> float:
        """The step in which masks move."""
        self.run.step = 400
        seconds = self.step()
        self.run.step = 401
        return seconds


def measure() -> list[Measured]:
    with tempfile.TemporaryDirectory() as directory:
        sampler = quickstart.sampler(Path(directory), 1)
        lines = []
        for group, bar in ((HELD, 1.03), (MOVING, 1.05), (STRUCTURED, 1.30), (ESTIMATED, None)):
            for name, fields in group.items():
                lines.append(compare(name, fields, bar, sampler, moving=group is MOVING))
    return lines


def compare(name: str, fields: dict[str, Any], bar: float | None, sampler: Any, moving: bool) -> Measured:
    dense, ours = Trainee("dense", {}, sampler), Trainee(name, fields, sampler)
    contestants: dict[str, Callable[[], float]] = {"dense": dense.step, "ours": ours.step}
    if moving:
        contestants["update"] = ours.update
    rounds = take_turns(contestants, ROUNDS)

    def ratio(seconds: dict[str, float]) -> float:
        extra = (seconds["update"] - seconds["ours"]) / UPDATES_EVERY if moving else 0.0
        return (seconds["ours"] + extra) / seconds["dense"]

    step = 1000 * median(rounds, lambda seconds: seconds["dense"])
    said = f"{name} {fields} / dense step of {step:.0f} ms; {spread(rounds, ratio)}"
    if moving:
        update = 1000 * median(rounds, lambda seconds: seconds["update"] - seconds["ours"])
        said += f"; an update costs {update:.0f} ms every {UPDATES_EVERY} steps"
    label = f"regime.{name}" + (".mvue" if fields.get("mvue") else "")
    return Measured(label, median(rounds, ratio), bar, said)
