"""Every ZeRO stage trains what one plain process trains, keeps its masks, and goes on from anyone's snapshot.

The slow tests start two gloo ranks of this file (``python -m tests.cluster.deepspeed.test_engine <stage> <directory>``). One
start serves a whole stage, so each worker asserts many things. The model is large enough that ZeRO cuts tensors.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytest import approx

from tasks.train.engine import TorchEngine, adamw
from tasks.train.snapshot import latest, restore, save

UP, QUERY = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"  # ZeRO-3 keeps QUERY whole
HELD = {UP: (192, 32), QUERY: (32, 32)}
STEPS, CHANGE = 10, 5
LOUD, CLIPPING = 8.0, 3.0  # gradient norms beyond the clipping, and that beyond DeepSpeed's own default of 1


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=16, **shape))


def keeps(step: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0 if step < CHANGE else 1)
    return {name: torch.rand(shape, generator=draw) < 0.5 for name, shape in HELD.items()}


def backward(engine, step: int, scale: float = 1.0) -> torch.Tensor:
    """One global batch of 8 sequences in two micro-batches; its loss, averaged over ranks."""
    tokens = torch.randint(0, 256, (8, 16), generator=torch.Generator().manual_seed(step))
    total = torch.zeros(())
    for micro in tokens.chunk(engine.ranks)[engine.rank].chunk(2):
        loss = engine.forward(input_ids=micro, labels=micro, use_cache=False).loss / 2
        engine.backward(LOUD * scale * loss)
        total += loss.detach().float()
    if engine.ranks > 1:
        torch.distributed.all_reduce(total)
    return total / engine.ranks


def train(engine, steps: range) -> torch.Tensor:
    """Under masks that move at CHANGE, where some live weights restart too; rows of (loss, norm, gradient)."""
    rows = []
    for step in steps:
        if step in (steps[0], CHANGE):
            for name, keep in keeps(step).items():
                engine.hold(name, keep)
                if step == CHANGE:
                    engine.restart(name, keep & keeps(0)[name])
        loss = backward(engine, step)
        dense = float(engine.grad(UP).norm())
        rows.append((float(loss), engine.step(3e-3), dense))
        assert_masked(engine, keeps(step))
    return torch.tensor(rows)


def assert_masked(engine, keeps: dict[str, torch.Tensor]) -> None:
    """Dead weights are exactly zero in everything this rank holds, and live ones are not."""
    parameters, seen = dict(engine.module.named_parameters()), 0
    for name, shard in engine.shards():
        if name in keeps:
            dead = ~keeps[name].flatten()[shard.start : shard.start + shard.numel]
            assert not any(values[dead].any() for values in (shard.master, *shard.moments.values(), *shard.copies))
            assert alive(shard.master[~dead]) and alive(shard.moments["exp_avg"][~dead])
    for name, keep in keeps.items():
        if parameters[name].shape == keep.shape:  # not cut by ZeRO-3: the copy the forward pass reads, all of it
            assert not parameters[name][~keep].any() and alive(parameters[name][keep])
            seen += 1
    assert seen >= 1


def alive(values: torch.Tensor) -> bool:
    """In bf16 a few gradients round to zero, and a grown weight waits for its first."""
    return float(values.count_nonzero()) > 0.9 * values.numel()


def state(engine) -> dict[str, torch.Tensor]:
    return {
        f"{kind}/{name}": values.clone()
        for name, shard in engine.shards()
        for kind, values in {"master": shard.master, **shard.moments}.items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(values, other[key]) for key, values in one.items())


def plain(precision: str = "fp32") -> TorchEngine:
    module = llama()
    return TorchEngine(module, adamw(module), CLIPPING, precision=precision)


def sharded(stage: int, precision: str = "fp32", **how):
    return engine_over(llama(), stage, precision, **how)


def engine_over(module, stage: int, precision: str, optimizer=None, **how):
    from cluster.deepspeed.engine import DeepSpeedEngine

    how |= {"precision": precision, "zero_stage": stage, "accumulation": 2}
    return DeepSpeedEngine(module, optimizer or adamw(module), CLIPPING, **how)


def check_stage(stage: int, directory: Path) -> None:
    """What each of two ranks asserts in float32."""
    reference, engine = plain(), sharded(stage)
    assert engine.ranks == 2
    curve = train(reference, range(STEPS))
    torch.testing.assert_close(train(engine, range(CHANGE)), curve[:CHANGE], rtol=3e-6, atol=0)
    save(engine, directory / "own", CHANGE, {"cursor": CHANGE}, {"keep": keeps(0)[UP]})
    torch.testing.assert_close(train(engine, range(CHANGE, STEPS)), curve[CHANGE:], rtol=3e-6, atol=0)
    for name in dict(reference.module.named_parameters()):
        # by norm: Adam turns the rounding of a gradient that is nearly zero into a step of ordinary size
        assert (engine.read(name) - reference.read(name)).norm() < 1e-4 * reference.read(name).norm()

    resumed = sharded(stage)
    step, values, tensors = restore(latest(directory / "own"), resumed)
    assert (step, values) == (CHANGE, {"cursor": CHANGE}) and torch.equal(tensors["keep"], keeps(0)[UP])
    train(resumed, range(step, STEPS))
    assert_same(state(resumed), state(engine))

    before = {name: engine.read(name) for name in HELD}
    backward(engine, 0, scale=float("inf") if engine.rank == 0 else 1.0)
    assert not torch.isfinite(torch.tensor(engine.step(3e-3)))
    assert all(torch.equal(engine.read(name), weight) for name, weight in before.items())
    assert_same(state(resumed), state(engine))
    for each in (engine, resumed):  # and the engine is fit for use
        backward(each, STEPS)
        each.step(3e-3)
    assert_same(state(resumed), state(engine))

    foreign = sharded(stage)  # goes on from one plain process
    step, *_ = restore(latest(directory / "plain"), foreign)
    torch.testing.assert_close(train(foreign, range(step, STEPS)), curve[step:], rtol=3e-6, atol=0)


def check_bf16(stage: int, directory: Path) -> None:
    reference, engine = plain("bf16"), sharded(stage, "bf16")
    for name in HELD:  # not rounded on the way in
        assert torch.equal(engine.read(name), reference.read(name)) and engine.read(name).dtype == torch.float32
    first, curve = train(engine, range(CHANGE)), train(reference, range(STEPS))
    save(engine, directory / "bf16", CHANGE, {}, {})
    second = train(engine, range(CHANGE, STEPS))
    torch.testing.assert_close(torch.cat([first, second])[:, 0], curve[:, 0], rtol=1e-2, atol=0)
    resumed = sharded(stage, "bf16")
    restore(latest(directory / "bf16"), resumed)
    assert torch.equal(train(resumed, range(CHANGE, STEPS)), second)
    assert_same(state(resumed), state(engine))
    backward(engine, 0, scale=float("nan"))
    engine.step(3e-3)
    assert_same(state(resumed), state(engine))


def check_frozen(stage: int, precision: str, **how) -> None:
    """UP takes no step: its dead weights are zeroed once, on every rank, and nothing moves it. ZeRO-3 cuts it."""
    module = llama()
    module.get_parameter(UP).requires_grad_(False)
    engine, keep = engine_over(module, stage, precision, **how), keeps(0)[UP]
    before = engine.read(UP)
    engine.hold(UP, keep)
    engine.focus(UP, keep)
    assert not engine.grad(UP).any() and UP not in dict(engine.shards())
    for step in range(2):
        backward(engine, step)
        assert 0 < engine.step(3e-3) < float("inf")
        assert torch.equal(engine.read(UP), before.masked_fill(~keep, 0))
    engine.release(UP)
    engine.write(UP, before)
    assert torch.equal(engine.read(UP), before)


def check_still(stage: int, precision: str, **how) -> None:
    """What is frozen for a while stands still in every copy there is, and the others train as in one plain process."""
    reference, engine = plain(precision), sharded(stage, precision, **how)
    for each in (reference, engine):
        backward(each, 0), each.step(3e-3)
        each.freeze([UP, "model.norm.weight"])
    before = {name: values for name, values in state(engine).items() if name.endswith((UP, "model.norm.weight"))}
    whole = engine.read(UP)
    for step in (1, 2):
        losses = [float(backward(each, step)) for each in (reference, engine)]
        assert not engine.grad(UP).any()
        norms = [each.step(3e-3) for each in (reference, engine)]
        if precision == "fp32":
            assert losses[1] == approx(losses[0]) and norms[1] == approx(norms[0])
        now = state(engine)
        assert all(torch.equal(now[name], values) for name, values in before.items()) and torch.equal(engine.read(UP), whole)
    engine.freeze(())
    backward(engine, 3), engine.step(3e-3)
    assert alive(engine.read(UP) - whole)


def check_momentum(stage: int, precision: str, **how) -> None:
    """An optimizer with one moment: as in one plain process, and masked."""
    engines = []
    for build in (
        lambda module, by: TorchEngine(module, by, CLIPPING, precision=precision),
        lambda module, by: engine_over(module, stage, precision, by, **how),
    ):
        module = llama()
        by = Momentum(module.parameters(), 0.0, momentum=0.9)
        engines.append(build(module, by))
    reference, engine = engines
    for each in engines:
        each.hold(UP, keeps(0)[UP])
        each.curve = [(float(backward(each, step)), each.step(3e-2)) for step in range(4)]
    assert engine.curve == [approx(row, rel=3e-6 if precision == "fp32" else 2e-2) for row in reference.curve]
    assert not engine.read(UP)[~keeps(0)[UP]].any()
    assert {name.partition("/")[0] for name in state(engine)} <= {"master", "momentum_buffer"}
    grown, seed = keeps(0)[UP] & keeps(CHANGE)[UP], torch.linspace(-1, 1, 192 * 32).view(192, 32)
    for each in engines:
        each.restart(UP, grown, {"momentum_buffer": seed})
        backward(each, 4), each.step(1e-2)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(engine.read(UP), reference.read(UP), rtol=0, atol=tolerance)
    assert (engine.read(UP)[grown] + 9e-3 * seed[grown]).abs().mean() < 1e-3  # the update is mostly what was told


class Momentum(torch.optim.SGD):
    moments = ("momentum_buffer",)


def check_branches(stage: int, precision: str, directory: Path, **how) -> None:
    """A frozen model under its mask with low-rank branches: trained, resumed and merged as in one plain process."""
    from tasks.formats.mask import Mask
    from tasks.methods import build
    from tasks.models.find.linears import find_linears
    from tasks.train.regime import Setting

    def enter(build_engine):
        module, regime = llama(), build("regimes", {"lora": {"rank": 4}})
        module.get_parameter(UP).data.mul_(keeps(0)[UP])
        setting = Setting(find_linears(module), {UP: Mask.of(keeps(0)[UP], "unstructured", 0.4)}, 4, 4)
        regime.setup(module, setting)
        # Adam goes by the sign of a gradient, which is a matter of rounding in branches that are nearly nothing
        learns = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return regime, setting, build_engine(module, Momentum(learns, 0.0, momentum=0.9))

    alone = enter(lambda module, by: TorchEngine(module, by, CLIPPING, precision=precision))
    shared, again = (enter(lambda module, by: engine_over(module, stage, precision, by, **how)) for _ in range(2))
    for step in range(4):
        losses = [(float(backward(each[2], step)), each[2].step(0.3)) for each in (alone, shared)]
        if precision == "fp32" or step < 2:  # each step in bfloat16 starts from where the last one's rounding left it
            assert losses[1] == approx(losses[0], rel=1e-5 if precision == "fp32" else 2e-2)
        if step == 1:
            save(shared[2], directory / f"branches-{precision}", 2, {}, {})
    restore(latest(directory / f"branches-{precision}"), again[2])
    for step in (2, 3):
        backward(again[2], step), again[2].step(0.3)
    assert_same(state(again[2]), state(shared[2]))
    assert all(".lora." in name for name, _ in shared[2].shards())
    table = "model.embed_tokens.weight"
    assert torch.equal(shared[2].read(table), alone[2].read(table))  # also where the forward pass reads bfloat16
    regime, setting, engine = shared
    up, down = (engine.read(UP.replace("weight", f"lora.{side}")) for side in ("up", "down"))
    expected = (engine.read(UP) + 4 * up @ down) * keeps(0)[UP]
    regime.finish(engine, setting)
    torch.testing.assert_close(engine.read(UP), expected, rtol=1e-6, atol=1e-7)
    assert (engine.read(UP) != llama().get_parameter(UP))[keeps(0)[UP]].float().mean() > 0.9


def ranks(count: int, *arguments: str, environment: dict[str, str], module: str = __name__) -> list[str]:
    """Run a test file as that many ranks on this machine; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={
                **os.environ,
                **environment,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "PYTHONHASHSEED": str(rank),
            },  # ranks that walk a set would each take an order of their own
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    return outputs


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_what_one_plain_process_trains(stage, tmp_path):
    alone = plain()
    train(alone, range(CHANGE))
    save(alone, tmp_path / "plain", CHANGE, {}, {})
    extensions = tmp_path / "extensions"
    outputs = ranks(2, str(stage), str(tmp_path), environment={"TORCH_EXTENSIONS_DIR": str(extensions)})
    assert outputs == ["", ""]  # DeepSpeed is silent
    assert not extensions.exists()  # and compiles nothing

    heir = plain()  # one plain process goes on from two ranks
    step, *_ = restore(latest(tmp_path / "own"), heir)
    torch.testing.assert_close(train(heir, range(step, STEPS)), train(alone, range(step, STEPS)), rtol=3e-6, atol=0)


def test_one_rank_makes_its_own_process_group_and_prints_nothing(capfd):
    engine, reference = sharded(stage=2), plain()
    assert (engine.rank, engine.ranks) == (0, 1)
    torch.testing.assert_close(train(engine, range(STEPS)), train(reference, range(STEPS)), rtol=3e-6, atol=0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stage", [0, 3])
def test_dead_weights_of_a_frozen_parameter_are_zeroed_once_and_stay(stage):
    check_frozen(stage, "fp32")


def test_one_rank_freezes_obeys_another_optimizer_and_trains_branches(tmp_path):
    check_still(1, "fp32")
    check_momentum(1, "fp32")
    check_branches(1, "fp32", tmp_path)


@pytest.mark.parametrize(("options", "message"), [({"stage": 4}, "no ZeRO stage 4"), ({"precision": "fp16"}, "'fp16'")])
def test_settings_that_do_not_exist_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        sharded(**{"stage": 1, **options})


if __name__ == "__main__":
    check_stage(int(sys.argv[1]), Path(sys.argv[2]))
    check_bf16(int(sys.argv[1]), Path(sys.argv[2]))
    for precision in ("fp32", "bf16"):
        check_frozen(int(sys.argv[1]), precision)
        check_still(int(sys.argv[1]), precision)
        check_momentum(int(sys.argv[1]), precision)
        check_branches(int(sys.argv[1]), precision, Path(sys.argv[2]))
    from cluster.deepspeed.rank import leave

    leave(0)
