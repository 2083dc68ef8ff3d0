"""Gradual pruning ranks what it says it ranks, never revives a weight, and leaves a mask whose promise holds."""

from __future__ import annotations

import pytest
import torch

from tasks.formats.mask import Mask
from tasks.formats.selection import quota
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine, adamw
from tasks.train.hook import Run
from tasks.train.masking import GradualMagnitude, Masking
from tasks.train.schedule import ExponentialDensity
from tests.tasks import models_zoo as zoo

SCHEDULE = ExponentialDensity(0.7, 0, 4, 2)


def start(architecture: str = "llama", scope: str = "global", masks=None, schedule=SCHEDULE) -> tuple[GradualMagnitude, Run]:
    model = zoo.model(architecture, layers=1)
    hook = GradualMagnitude(find_linears(model), masks or {}, schedule, scope)
    run = Run(TorchEngine(model, adamw(model)), 10)
    hook.on_start(run)
    return hook, run


def weights(hook: Masking, run: Run) -> dict[str, torch.Tensor]:
    return {name: hook.weight(run, name) for name in hook.linears}


def jump(hook: Masking, run: Run, step: int) -> None:
    run.step = step
    hook.after_step(run)


def test_globally_the_smallest_weights_of_all_matrices_go():
    before = weights(*start(schedule=ExponentialDensity(0.7, 5, 5, 1)))
    hook, _ = start(schedule=ExponentialDensity(0.7, 0, 0, 1))
    union = torch.cat([weight.abs().flatten() for weight in before.values()]).sort().values
    pruned = quota(len(union), 0.7)
    assert sum(mask.numel - mask.live for mask in hook.masks.values()) == pruned
    for name, mask in hook.masks.items():
        assert torch.equal(mask.keep, before[name].abs() >= union[pruned])


@pytest.mark.parametrize(("scope", "group"), [("layer", lambda keep: keep.reshape(1, -1)), ("row", lambda keep: keep)])
def test_locally_every_matrix_or_row_loses_its_own_share(scope, group):
    hook, run = start(scope=scope)
    jump(hook, run, 4)
    for mask in hook.masks.values():
        keep = group(mask.keep)
        assert int((~keep).sum()) == quota(keep.numel(), 0.7) and int((~keep).sum(-1).min()) == quota(keep.shape[-1], 0.7)


def test_masks_are_nested_over_the_events_and_the_last_count_is_exact():
    hook, run = start()
    total, seen = sum(mask.numel for mask in hook.masks.values()), [dict(hook.masks)]
    for step in (1, 2, 3, 4, 5):
        jump(hook, run, step)
        seen.append(dict(hook.masks))
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert not any((later[name].keep & ~earlier[name].keep).any() for name in later)
    live = [sum(mask.live for mask in masks.values()) for masks in seen]
    assert live == [total - quota(total, SCHEDULE.at(step)) for step in (0, 1, 2, 3, 4, 5)]
    assert live[-1] == total - quota(total, 0.7) and hook.density() == pytest.approx(live[-1] / total)


def test_a_dead_weight_stays_dead_where_live_ones_are_zero_too():
    hook, run = start()
    first = {name: mask.keep for name, mask in hook.masks.items()}
    for name in hook.linears:
        run.engine.module.get_parameter(name).data.zero_()
    jump(hook, run, 4)
    assert not any((mask.keep & ~first[name]).any() for name, mask in hook.masks.items())
    assert 1 - hook.density() == pytest.approx(0.7, abs=1e-3)


def test_what_was_dead_before_training_stays_dead_even_where_the_schedule_asks_for_less():
    half = {
        name: Mask.of(torch.rand(linear.shape) < 0.5, "unstructured", 0.4)
        for name, linear in find_linears(zoo.model("llama", layers=1)).items()
    }
    hook, run = start(masks=half, schedule=ExponentialDensity(0.1, 0, 4, 2))
    jump(hook, run, 4)
    for name, weight in weights(hook, run).items():
        assert torch.equal(hook.masks[name].keep, half[name].keep) and not weight[~half[name].keep].any()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_every_promise_holds_in_every_storage_and_only_linears_are_touched(architecture, scope):
    dense = zoo.model(architecture, layers=1)
    hook, run = start(architecture, scope)
    assert all(mask.broken() is None for mask in hook.masks.values())
    for name, weight in weights(hook, run).items():
        assert not weight[~hook.masks[name].keep].any() and weight[hook.masks[name].keep].all()
    for name, parameter in dense.named_parameters():
        assert name in hook.linears or torch.equal(run.engine.read(name), parameter)


def test_the_state_carries_masks_and_promises():
    hook, _ = start()
    other = GradualMagnitude(hook.linears, {}, SCHEDULE, "global")
    other.load_state_dict(*hook.state_dict())
    assert other.masks.keys() == hook.masks.keys() and other.density() == hook.density()
    for name, mask in hook.masks.items():
        assert torch.equal(other.masks[name].keep, mask.keep)
        assert (other.masks[name].pattern, other.masks[name].sparsity) == (mask.pattern, mask.sparsity)


def test_a_matrix_without_a_mask_counts_as_live():
    linears = find_linears(zoo.model("llama", layers=1))
    name = next(iter(linears))
    hook = Masking(linears, {name: Mask.of(torch.zeros(linears[name].shape, dtype=torch.bool), "unstructured", 1.0)})
    total = sum(linear.shape[0] * linear.shape[1] for linear in linears.values())
    assert hook.density() == pytest.approx(1 - linears[name].shape[0] * linears[name].shape[1] / total)
    assert Masking(linears, {}).density() == 1.0
