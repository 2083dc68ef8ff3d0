"""The plain engine is what it says: AdamW on the live weights, nothing at all on the dead ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tasks.train.engine import MOMENTS, TorchEngine, adamw

WEIGHT = "0.weight"


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def engine_of(module: nn.Module, clipping: float = 1.0, **options) -> TorchEngine:
    return TorchEngine(module, adamw(module), clipping, **options)


def train(engine: TorchEngine, steps: range, scale: float = 1.0) -> list[float]:
    norms = []
    for step in steps:
        batch = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        engine.backward(scale * engine.forward(batch).square().mean())
        norms.append(engine.step(1e-2))
    return norms


def half(shape: tuple[int, ...], seed: int = 7) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


def moments(engine: TorchEngine, name: str) -> dict[str, torch.Tensor]:
    return dict(engine.shards())[name].moments


def test_it_is_adamw_with_clipping_as_torch_writes_it():
    module, engine = network(), engine_of(network(), clipping=0.1)
    decayed = [{"params": [p for p in module.parameters() if p.ndim == ndim]} for ndim in (2, 1)]
    plain = torch.optim.AdamW([decayed[0], {**decayed[1], "weight_decay": 0.0}], 1e-2, (0.9, 0.95), weight_decay=0.1)
    for step in range(10):
        batch = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        module(batch).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        plain.step()
        plain.zero_grad()
        assert train(engine, range(step, step + 1)) == pytest.approx([float(norm)], rel=1e-5)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(engine.read(name), parameter.detach(), rtol=1e-5, atol=1e-7)


def test_a_masked_model_trains_like_the_smaller_model_that_is_left():
    """Columns 0, 2 and 5 of a linear layer live; a layer with only these three inputs must follow the same path."""
    live = [0, 2, 5]
    full, small = nn.Linear(6, 3), nn.Linear(3, 3)
    small.weight.data, small.bias.data = full.weight.data[:, live].clone(), full.bias.data.clone()
    masked, reference = engine_of(full), engine_of(small)
    keep = torch.zeros(3, 6, dtype=torch.bool)
    keep[:, live] = True
    masked.hold("weight", keep)
    for step in range(20):
        batch = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        masked.backward(10 * masked.forward(batch).square().mean())
        reference.backward(10 * reference.forward(batch[:, live]).square().mean())
        assert masked.step(1e-2) == pytest.approx(reference.step(1e-2), rel=1e-5)  # clipping sees live weights only
    torch.testing.assert_close(masked.read("weight")[:, live], reference.read("weight"), rtol=1e-5, atol=1e-7)


def test_dead_weights_are_exactly_zero_and_carry_no_moments():
    engine = engine_of(network())
    train(engine, range(5))  # momentum and decay are under way
    keep = half((16, 8))
    engine.hold(WEIGHT, keep)
    for step in range(5, 10):
        train(engine, range(step, step + 1))
        dead = ~keep.flatten()
        assert not engine.read(WEIGHT)[~keep].any()
        assert not any(moments(engine, WEIGHT)[moment][dead].any() for moment in MOMENTS)
        assert engine.read(WEIGHT)[keep].all() and moments(engine, WEIGHT)["exp_avg"][~dead].all()


def test_newborn_weights_start_at_zero_and_learn_from_the_next_step_on():
    module, old, new = network(), half((16, 8), 1), half((16, 8), 2)
    engine = TorchEngine(module, adamw(module, epsilon=1e-15), 1.0)
    engine.hold(WEIGHT, old)
    train(engine, range(5))
    engine.hold(WEIGHT, new)
    grown = new & ~old
    assert not engine.read(WEIGHT)[grown].any()
    train(engine, range(5, 6))
    # without any past, Adam's update does not depend on the size of the gradient; the step count is the model's
    update = 1e-2 * (0.1 / (1 - 0.9**6)) / (0.05 / (1 - 0.95**6)) ** 0.5
    torch.testing.assert_close(engine.read(WEIGHT)[grown].abs(), torch.full((int(grown.sum()),), update), rtol=1e-4, atol=0)


def test_restart_forgets_values_and_moments_of_the_chosen_weights_only():
    engine, grown = engine_of(network()), half((16, 8))
    train(engine, range(3))
    before, speed = engine.read(WEIGHT), moments(engine, WEIGHT)["exp_avg"].clone()
    engine.restart(WEIGHT, grown)
    assert torch.equal(engine.read(WEIGHT), before.masked_fill(grown, 0))
    assert torch.equal(moments(engine, WEIGHT)["exp_avg"], speed.masked_fill(grown.flatten(), 0))


def test_restart_gives_the_chosen_weights_the_moments_that_it_is_told():
    engine, grown = engine_of(network()), half((16, 8))
    train(engine, range(3))
    before = {name: values.clone() for name, values in moments(engine, WEIGHT).items()}
    engine.restart(WEIGHT, grown, {"exp_avg": torch.full((16, 8), 7.0)})
    assert torch.equal(moments(engine, WEIGHT)["exp_avg"], before["exp_avg"].masked_fill(grown.flatten(), 7))
    assert torch.equal(moments(engine, WEIGHT)["exp_avg_sq"], before["exp_avg_sq"].masked_fill(grown.flatten(), 0))


def test_released_weights_grow_again():
    engine, keep = engine_of(network()), half((16, 8))
    engine.hold(WEIGHT, keep)
    engine.release(WEIGHT)
    train(engine, range(1))
    assert engine.read(WEIGHT)[~keep].all()


def test_between_backward_and_step_the_gradient_is_dense_and_belongs_to_the_reader():
    engine, twin, keep = engine_of(network()), engine_of(network()), half((16, 8))
    for each in (engine, twin):
        each.hold(WEIGHT, keep)
        each.backward(each.forward(torch.ones(4, 8)).square().mean())
    gradient = engine.grad(WEIGHT)
    assert gradient[~keep].all()
    gradient.zero_()
    assert engine.step(1e-2) == twin.step(1e-2)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_told_and_leaves_no_trace(poison):
    engine, twin = engine_of(network()), engine_of(network())
    for each in (engine, twin):
        train(each, range(3))
    norm = train(engine, range(3, 4), scale=poison)[0]
    assert not torch.isfinite(torch.tensor(norm))
    train(engine, range(3, 6)), train(twin, range(3, 6))
    for name, shard in engine.shards():
        assert torch.equal(shard.master, dict(twin.shards())[name].master)


def test_loading_before_the_first_step_restores_the_step_count_of_the_bias_correction():
    engine = engine_of(network())
    train(engine, range(4))
    values = {name: {"master": shard.master, **shard.moments} for name, shard in engine.shards()}
    values = {name: {kind: tensor.clone() for kind, tensor in each.items()} for name, each in values.items()}
    other = engine_of(network(seed=1))
    other.load(values, step=4)
    train(engine, range(4, 6)), train(other, range(4, 6))
    assert all(torch.equal(engine.read(name), other.read(name)) for name, _ in network().named_parameters())


def test_loading_releases_the_masks():
    engine, keep = engine_of(network()), half((16, 8))
    engine.hold(WEIGHT, keep)
    engine.load({name: {"master": p.detach().flatten()} for name, p in network().named_parameters()}, step=0)
    train(engine, range(1))
    assert engine.read(WEIGHT)[~keep].all()


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights():
    engine, keep = engine_of(network(), precision="bf16"), half((16, 8))
    engine.hold(WEIGHT, keep)
    assert engine.forward(torch.ones(2, 8)).dtype == torch.bfloat16
    train(engine, range(3))
    assert engine.read(WEIGHT).dtype == torch.float32 and not engine.read(WEIGHT)[~keep].any()


def test_frozen_weights_can_be_read_and_stay():
    module = network()
    module[0].requires_grad_(False)
    before, engine = copy.deepcopy(module[0].weight.data), engine_of(module)
    train(engine, range(2))
    assert torch.equal(engine.read(WEIGHT), before)
    assert {name for name, _ in engine.shards()} == {"2.weight", "2.bias"}


def test_dead_weights_of_a_frozen_parameter_are_zeroed_once_and_stay():
    module, keep = network(), half((16, 8))
    module[0].requires_grad_(False)
    before, engine = copy.deepcopy(module[0].weight.data), engine_of(module)
    engine.hold(WEIGHT, keep)
    engine.focus(WEIGHT, keep)
    train(engine, range(2))
    assert torch.equal(engine.read(WEIGHT), before.masked_fill(~keep, 0)) and not engine.grad(WEIGHT).any()
    assert {name for name, _ in engine.shards()} == {"2.weight", "2.bias"}
    engine.release(WEIGHT)
    engine.write(WEIGHT, before)
    train(engine, range(1))
    assert torch.equal(engine.read(WEIGHT), before)


def test_what_is_frozen_stands_still_until_it_is_not_and_the_others_train_as_if_it_were_no_part_of_the_model():
    engine, keep = engine_of(network()), half((16, 8))
    engine.hold(WEIGHT, keep)
    train(engine, range(3))  # momentum and decay are under way
    before = {name: [engine.read(name), *map(torch.clone, moments(engine, name).values())] for name in (WEIGHT, "0.bias")}
    twin = network()
    twin.load_state_dict(engine.module.state_dict())
    twin[0].requires_grad_(False)
    rest = TorchEngine(twin, adamw(twin), 1.0)
    values = {name: {"master": shard.master, **shard.moments} for name, shard in engine.shards()}
    rest.load(values, step=3)
    engine.freeze(before)
    norms = train(engine, range(3, 6))
    assert norms == train(rest, range(3, 6))
    assert all(torch.equal(engine.read(name), rest.read(name)) for name, _ in twin.named_parameters())
    assert not engine.grad(WEIGHT).any() and set(before) < {name for name, _ in engine.shards()}
    for name, kept in before.items():
        now = [engine.read(name), *moments(engine, name).values()]
        assert all(torch.equal(one.flatten(), other.flatten()) for one, other in zip(kept, now, strict=True))
    engine.freeze(())
    train(engine, range(6, 7))
    moved = engine.read(WEIGHT) != before[WEIGHT][0]
    assert moved[keep].all() and not moved[~keep].any()


def test_loading_thaws_and_a_run_goes_on_with_what_stood_still():
    engine, other = engine_of(network()), engine_of(network(seed=1))
    engine.freeze([WEIGHT])
    train(engine, range(4))
    other.freeze(["2.weight"])
    other.load({name: {"master": shard.master, **shard.moments} for name, shard in engine.shards()}, step=4)
    engine.freeze(())
    train(engine, range(4, 6)), train(other, range(4, 6))
    assert all(torch.equal(engine.read(name), other.read(name)) for name, _ in network().named_parameters())


def test_another_optimizer_is_obeyed_masked_and_resumed():
    class Momentum(torch.optim.SGD):
        moments = ("momentum_buffer",)

    def engine_with_momentum() -> TorchEngine:
        module = network()
        return TorchEngine(module, Momentum(module.parameters(), 0.0, momentum=0.9), 0.0)

    engine, by_hand, keep = engine_with_momentum(), network(), half((16, 8))
    plain = torch.optim.SGD(by_hand.parameters(), 1e-2, momentum=0.9)
    for step in range(3):
        by_hand(torch.randn(32, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        plain.step(), plain.zero_grad()
    train(engine, range(3))
    assert all(torch.equal(engine.read(name), value) for name, value in by_hand.named_parameters())
    engine.hold(WEIGHT, keep)
    train(engine, range(3, 5))
    shard, resumed = dict(engine.shards())[WEIGHT], engine_with_momentum()
    assert list(shard.moments) == ["momentum_buffer"] and not shard.moments["momentum_buffer"][~keep.flatten()].any()
    resumed.load(
        {
            name: {"master": shard.master.clone(), **{moment: values.clone() for moment, values in shard.moments.items()}}
            for name, shard in engine.shards()
        },
        step=5,
    )
    resumed.hold(WEIGHT, keep)
    train(engine, range(5, 7)), train(resumed, range(5, 7))
    assert all(torch.equal(engine.read(name), resumed.read(name)) for name, _ in network().named_parameters())


def test_an_unknown_precision_is_refused_by_name():
    with pytest.raises(ValueError, match="no precision 'fp16'; choose fp32 or bf16"):
        engine_of(network(), precision="fp16")
