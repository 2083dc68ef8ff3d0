"""A tiny model under a regime, one step at a time: for worked examples of what a regime does to masks and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tasks.data.batch import Batch
from tasks.formats.mask import Mask, Masks
from tasks.methods import build
from tasks.models.build.building import operate
from tasks.models.find.linears import find_linears
from tasks.objectives.cross_entropy import CrossEntropy
from tasks.train.adapters.delta import live_weights, shared_out
from tasks.train.engine import TorchEngine
from tasks.train.hook import Run
from tasks.train.regime import Regime, Setting
from tests.tasks import models_zoo as zoo

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@dataclass
class Gym:
    """``step`` trains one batch; ``hook`` is the regime's first hook."""

    regime: Regime
    run: Run
    hooks: list
    setting: Setting

    @property
    def hook(self):
        return self.hooks[0]

    @property
    def engine(self) -> TorchEngine:
        return self.run.engine

    def weight(self, name: str) -> torch.Tensor:
        return self.engine.module.get_parameter(name).detach()

    def backward(self, tokens: torch.Tensor | None = None) -> torch.Tensor:
        loss, _ = CrossEntropy().bind()(self.engine, Batch(zoo.batches()[0] if tokens is None else tokens))
        self.engine.backward(loss)
        return loss.detach()

    def step(self, rate: float = 1e-2) -> torch.Tensor:
        loss = self.backward()
        for hook in self.hooks:
            hook.after_backward(self.run)
        self.engine.step(rate)
        self.run.step += 1
        for hook in self.hooks:
            hook.after_step(self.run)
        return loss

    def train(self, steps: int) -> Gym:
        for _ in range(steps):
            self.step()
        return self

    def finish(self) -> None:
        self.regime.finish(self.engine, self.setting)

    def logits(self) -> torch.Tensor:
        return self.engine.module(zoo.batches()[0], use_cache=False).logits.detach()

    def live(self) -> dict[str, int]:
        return {name: mask.live for name, mask in self.hook.masks.items()}


def enter(name: str, steps: int = 12, masks=None, architecture: str = "llama", seed: int = 0, sizes=None, **fields) -> Gym:
    """A regime over a fresh tiny model (hidden 32, feed-forward 48), its hooks started."""
    regime = build("regimes", {name: fields})
    model = zoo.model(architecture, layers=1, **(sizes or {}))
    for linear, mask in (masks or {}).items():
        model.get_parameter(linear).data.mul_(mask.keep)
    if surgery := regime.surgery():
        operate(model, surgery)
    setting = Setting(find_linears(model), masks or {}, steps, steps, seed=seed)
    regime.setup(model, setting)
    run = Run(TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0), steps)
    gym = Gym(regime, run, regime.hooks(setting), setting)
    for hook in gym.hooks:
        hook.sampler(Repeated())
        hook.objective(CrossEntropy().bind())
        hook.on_start(run)
    return gym


class Repeated:
    """Draws the one batch that :meth:`Gym.step` trains on."""

    batch = len(zoo.batches()[0])

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        return Batch(zoo.batches()[0])


def exchange(entered: Callable[[Masks], Gym]) -> list[torch.Tensor]:
    """Train 5 % of a masked model's weights by a regime that changes single ones: they stay as many, each once and inside the
    mask, nothing else changes, and the merged model is the one that was trained. The places in ``UP``, before and after each
    choice."""
    keep = torch.rand(48, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    gym = entered({UP: Mask.of(keep, "unstructured", 0.4)})
    live = live_weights(gym.setting.linears, gym.setting.masks)
    sizes = shared_out(live, int(0.05 * sum(live.values())))
    before = {name: gym.weight(name).clone() for name, _ in gym.engine.module.named_parameters() if gym.regime.name not in name}
    seen = [gym.hook.branches[UP].places.clone()]
    for _ in range(12):
        gym.step(rate=0.05)
        for name, branch in gym.hook.branches.items():
            assert len(branch.places.unique()) == len(branch.places) == sizes[name]
        places = gym.hook.branches[UP].places
        assert keep.flatten()[places.long()].all()
        seen += [] if torch.equal(places, seen[-1]) else [places.clone()]
    assert all(torch.equal(values, gym.engine.module.get_parameter(name)) for name, values in before.items())
    trained = gym.logits()
    gym.finish()
    torch.testing.assert_close(gym.logits(), trained, rtol=1e-4, atol=1e-4)
    changed = (gym.weight(UP) != before[UP]).flatten().nonzero()[:, 0]
    assert set(changed.tolist()) <= set(gym.hook.branches[UP].places.tolist()), "a place that was given up is as it was"
    return seen
