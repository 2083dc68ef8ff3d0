"""What every regime on the shelf promises: dead is dead, a crash changes nothing, and no sparsity is no difference."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.data.tokens import Sampler
from tasks.formats.grid import Grid
from tasks.formats.mask import Mask
from tasks.formats.pattern import parse_pattern
from tasks.methods import build, dump, names
from tasks.models.build.building import operate
from tasks.models.files.checkpoint import load_model, save_model
from tasks.models.files.promises import require_subset
from tasks.models.find.linears import find_linears
from tasks.train.engine import TorchEngine
from tasks.train.fake_quantized import fake_quantize, rounded
from tasks.train.hook import Hook
from tasks.train.loop import Checkpoints, fit
from tasks.train.masking import Masking
from tasks.train.recomputed import recompute_blocks
from tasks.train.regime import Setting
from tasks.train.schedule import LearningRate
from tests.contracts.test_methods_without_torch import SCRIPT
from tests.tasks import data_zoo
from tests.tasks import models_zoo as zoo

DENSE_STEPS = 12
# fields that let a regime act within twelve steps, where defaults do not
QUICK = {name: {"interval": 2} for name in ("gradual", "rigl", "set", "dsl")} | {
    "sdgf_geometric": {"pattern": "1:2"},
    "fst": {"refresh": 2, "dense": 0},
    "sparcl": {"refresh": 2, "buffer": 4, "probes": 4, "interval": 0.3, "budget": "tokens"},
    "ast+slorb": {"slorb": 8, "refresh": 2},
    "spiel": {"density": 0.05, "interval": 4, "gathered": 2},
    "spiel_ma": {"density": 0.05, "interval": 4},
    "dsee": {"residuals": 8},
    "ist": {"interval": 2},
    "ist+pst": {"over": "pst", "interval": 2},
    "ig_lora": {"rank": 4},
    "ist+dsee": {"over": {"dsee": {"residuals": 8}}, "interval": 2},
}
OTHER_DATA = ("sparcl",)  # they see the corpus in an order of their own
CASES = sorted({*names("regimes"), *QUICK})  # NAME+WHAT is a regime with something that it does not have by default
FREEZING = [name for name in CASES if build("regimes", name.partition("+")[0]).freezes]
regimes = pytest.mark.parametrize("name", CASES)


def regime_of(name: str, **fields):
    return build("regimes", {name.partition("+")[0]: {**QUICK.get(name, {}), **fields}})


class Crash(Exception):
    pass


class Watch(Hook):
    """After every step: dead weights and their moments are zero, promises hold. Raises Crash at ``crash``."""

    def __init__(self, hooks, crash: int | None = None) -> None:
        self.hooks, self.crash, self.masks, self.gradients = hooks, crash, [], []

    def on_start(self, run) -> None:
        self.look(run)

    def after_backward(self, run) -> None:
        self.gradients.append({name: run.engine.grad(name) for name, _ in run.engine.module.named_parameters()})

    def after_step(self, run) -> None:
        self.look(run)
        if run.step == self.crash:
            raise Crash

    def look(self, run) -> None:
        self.masks.append(held(self.hooks))
        shards = dict(run.engine.shards())
        for name, mask in self.masks[-1].items():
            dead = ~mask.keep.flatten()
            trained = [shards[name].master, *shards[name].moments.values()] if name in shards else []
            values = trained or [run.engine.read(name).flatten()]
            assert mask.broken() is None and not any(value[dead].any() for value in values)


def held(hooks) -> dict[str, Mask]:
    return {name: mask for hook in hooks if isinstance(hook, Masking) for name, mask in hook.masks.items()}


def incoming() -> dict[str, Mask]:
    draw = torch.Generator().manual_seed(3)
    linears = find_linears(zoo.model("llama", layers=1)).items()
    return {name: Mask.of(torch.rand(linear.shape, generator=draw) < 0.7, "unstructured", 0.2) for name, linear in linears}


@pytest.fixture
def train(tmp_path):
    """Train a tiny model under a regime; (weights at the end, the watch over it)."""
    sampler = Sampler(data_zoo.write_tokens(tmp_path / "data", "train", data_zoo.periodic(16 * 40)), 16, 4, seed=0)
    sequence = data_zoo.write_sequence(tmp_path / "sequence", length=16)
    teacher = zoo.save("llama", tmp_path / "teacher", layers=1)

    def run(name, masks=None, crash=None, attempt=None, micro_batch=None, recompute=None, grid=None, **fields):
        regime, model = regime_of(name, **fields), zoo.model("llama", layers=1)
        if surgery := regime.surgery():
            operate(model, surgery)
        for linear, mask in (masks or {}).items():
            model.get_parameter(linear).data.mul_(mask.keep)
        steps = regime.total_steps(DENSE_STEPS)
        setting = Setting(find_linears(model), masks or {}, DENSE_STEPS, steps, seed=0, data=sequence)
        own = [parameter for parameter, _ in model.named_parameters()]
        if recompute:
            recompute_blocks(model, recompute)
        if grid:
            linears = setting.linears
            fake_quantize(model, linears, dict.fromkeys(linears, grid), dict.fromkeys(linears, torch.float32))
        regime.setup(model, setting)
        hooks, goal = regime.hooks(setting), regime.objective()
        watch = Watch(hooks, crash)
        watch.model = model
        engine = TorchEngine(model, regime.optimizer(model, (0.9, 0.95), 0.1), 1.0)
        checkpoints = None if attempt is None else Checkpoints(tmp_path / "checkpoints", 0.0, attempt, probe=1)
        drawn, objective = sampler, goal.bind(load_model(teacher).eval() if goal.needs_teacher() else None)
        for hook in hooks:
            drawn, objective = hook.sampler(drawn), hook.objective(objective)
        rate = LearningRate(1e-2, steps)
        fit(engine, drawn, objective, [*hooks, watch], steps, rate, checkpoints=checkpoints, micro_batch=micro_batch)
        watch.said = model.eval()(zoo.batches()[0], use_cache=False).logits.detach()
        regime.finish(engine, setting)
        return {parameter: engine.read(parameter) for parameter in own}, watch

    return run


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(values, other[name]) for name, values in one.items())


@regimes
def test_dead_weights_are_zero_after_every_step_and_the_same_seed_gives_the_same_bits(name, train):
    one, other = train(name), train(name)
    assert same(one[0], other[0])


@regimes
def test_masks_that_are_to_be_kept_are_kept(name, train):
    """Where a regime says so, nothing that was dead before training lives after it, and no mask is lost."""
    masks = incoming()
    weights, watch = train(name, masks)
    if not regime_of(name).keeps_masks:
        assert any(weights[linear][~mask.keep].any() for linear, mask in masks.items())
        return
    require_subset(watch.masks[-1], masks)
    assert not any(weights[linear][~mask.keep].any() for linear, mask in masks.items())


PATTERNS = ("unstructured", "unstructured:row", "2:4", "block:4", "group:4", "channel", "neuron")


def of_every_pattern() -> dict[str, Mask]:
    """A matrix under each pattern."""
    linears, masks = find_linears(zoo.model("llama", layers=1)), {}
    for (name, linear), text in zip(linears.items(), PATTERNS, strict=True):
        score = torch.rand(linear.shape, generator=torch.Generator().manual_seed(4))
        masks[name] = Mask.of(parse_pattern(text).keep(score, 0.5), text, 0.5)
    return masks


@regimes
def test_masks_of_every_pattern_keep_their_promise_to_the_end_or_are_refused_before_the_first_step(name, train):
    masks, regime, refused = of_every_pattern(), regime_of(name), set()
    for linear, mask in masks.items():
        try:
            regime.check_masks(mask.pattern)
        except ValueError as error:
            assert mask.pattern in str(error) and "\n" not in str(error)
            refused.add(linear)
    train(name, {linear: mask for linear, mask in masks.items() if linear not in refused})
    assert len(refused) < len(masks)


@regimes
def test_what_a_regime_says_of_masks_is_what_comes_of_them(name, train):
    """A plan tells by it whether models have one mask."""
    regime, came = regime_of(name), incoming()
    left, made = train(name, came)[1].masks[-1], train(name)[1].masks[-1]
    same_masks = left.keys() == came.keys() and all(torch.equal(left[linear].keep, came[linear].keep) for linear in came)
    said = {"held": same_masks and not made, "dropped": not left and not made, "moved": not same_masks and bool(made)}
    assert said.get(regime.masks, bool(left) and bool(made) and regime.keeps_masks)
    assert regime.masks == "dropped" or not made or {mask.pattern for mask in made.values()} == {regime.promise()}


@regimes
def test_a_run_that_crashed_at_half_equals_the_undisturbed_one(name, train):
    masks = incoming()
    half = regime_of(name).total_steps(DENSE_STEPS) // 2
    whole, watch = train(name, masks)
    with pytest.raises(Crash):
        train(name, masks, crash=half, attempt=0)
    again, watch_again = train(name, masks, attempt=1)
    assert len(watch_again.masks) < len(watch.masks)  # it did not begin anew
    assert same(whole, again)
    assert all(torch.equal(mask.keep, watch_again.masks[-1][linear].keep) for linear, mask in watch.masks[-1].items())


@regimes
def test_the_model_keeps_its_parameters_and_linears_by_name_and_a_branch_adds_none(name, tmp_path):
    model = zoo.model("llama", layers=1)
    names, linears = dict(model.named_parameters()), find_linears(model)
    sequence = data_zoo.write_sequence(tmp_path, length=16)
    regime_of(name).setup(model, Setting(linears, incoming(), DENSE_STEPS, DENSE_STEPS, data=sequence))
    after = dict(model.named_parameters())
    assert all(after[parameter] is value for parameter, value in names.items()) and find_linears(model) == linears


@pytest.mark.parametrize("recompute", ["selective", "layer"])
@pytest.mark.parametrize("name", ["dense", "sr_ste", "s_ste", "lora", "masked", "ast+slorb", "spiel", "pst", "ist"])
def test_what_is_computed_again_in_the_backward_pass_gives_the_same_gradients_bit_for_bit(name, recompute, train):
    (weights, kept), (again, made_again) = train(name), train(name, recompute=recompute)
    assert same(weights, again) and all(map(same, kept.gradients, made_again.gradients))


@regimes
def test_micro_batches_add_up_to_the_gradient_of_the_batch(name, train):
    exact = {"mvue": False} if name in ("s_ste", "fst") else {}  # estimates are drawn anew in each micro-batch
    (_, whole), (_, pieces) = (train(name, micro_batch=size, **exact) for size in (None, 1))
    for parameter, gradient in whole.gradients[0].items():
        # by norm, a hundred times what the order of float32 sums explains and a fifth of the smallest decay
        assert (pieces.gradients[0][parameter] - gradient).norm() <= 1e-5 * gradient.norm(), parameter


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in names("regimes")
        if "sparsity" in type(build("regimes", name)).model_fields and name not in (*OTHER_DATA, *FREEZING)
    ],
)
def test_no_sparsity_is_dense_training_bit_for_bit(name, train):
    assert same(train(name, sparsity=0)[0], train("dense")[0])


@pytest.mark.parametrize("name", FREEZING)
def test_what_branches_learned_is_what_plain_transformers_computes_inside_the_masks(name, train, tmp_path):
    masks = incoming()
    weights, watch = train(name, masks)
    save_model(weights, watch.model.config, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert plain.state_dict().keys() == zoo.model("llama", layers=1).state_dict().keys()
    said = plain.eval()(zoo.batches()[0], use_cache=False).logits.detach()
    torch.testing.assert_close(said, watch.said, rtol=1e-4, atol=1e-4)
    untrained = {name: value for name, value in zoo.model("llama", layers=1).named_parameters() if name not in masks}
    assert same({name: weights[name] for name in untrained}, untrained)
    assert any(
        not torch.equal(weights[name], zoo.model("llama", layers=1).get_parameter(name) * mask.keep)
        for name, mask in masks.items()
    )


@regimes
def test_trained_for_a_rounding_the_model_is_what_its_rounded_weights_compute(name, train):
    """Whatever a regime makes of a weight is rounded as a whole, and what was dead is rounded to zero. Left out are models with
    more modules, and S-STE, whose last step writes weights that its own forward pass would shrink once more."""
    grid = Grid(3, 16)
    weights, watch = train(name, incoming(), grid=grid)
    assert all(weights[linear].isfinite().all() for linear in find_linears(watch.model))
    if regime_of(name).surgery() or name == "s_ste":
        return
    plain = zoo.model("llama", layers=1)
    linears = find_linears(plain)
    for parameter, value in weights.items():
        stored = rounded(linears[parameter], grid, value, value.dtype) if parameter in linears else value
        plain.get_parameter(parameter).data.copy_(stored)
    said = plain(zoo.batches()[0], use_cache=False).logits.detach()
    # a branch that was merged may differ by the last bit of a sum, which moves single weights by a step
    assert (said - watch.said).norm() <= (1e-2 if regime_of(name).freezes else 1e-6) * said.norm()


def test_masked_training_without_masks_and_teacher_is_dense_training_bit_for_bit(train):
    assert same(train("masked", ce=1, kl=0)[0], train("dense")[0])


def test_gradual_masks_are_nested(train):
    _, watch = train("gradual", sparsity=0.8)
    for earlier, later in zip(watch.masks, watch.masks[1:], strict=False):
        require_subset(later, earlier)
    live, numel = (sum(getattr(mask, what) for mask in watch.masks[-1].values()) for what in ("live", "numel"))
    assert live == numel - int(0.8 * numel)


@regimes
def test_a_run_has_at_least_one_step_and_no_fewer_than_its_budget(name):
    assert regime_of(name).total_steps(1) >= 1 and regime_of(name).total_steps(1_000) >= 1_000


@regimes
def test_the_name_is_in_the_dump_and_the_paper_is_named(name):
    method = regime_of(name)
    assert dump(method).keys() == {method.name} and build("regimes", dump(method)) == method and method.paper


@pytest.mark.parametrize("shelf", ["regimes", "evaluators"])
def test_methods_are_built_and_dumped_without_torch(shelf):
    done = subprocess.run([sys.executable, "-c", SCRIPT, shelf, *names(shelf)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
