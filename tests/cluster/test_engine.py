"""Every ZeRO stage trains what one plain process trains, keeps its masks, and goes on from anyone's snapshot.

The slow tests start two gloo ranks of this file (``python -m tests.cluster.test_engine <stage> <directory>``). One
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
    """In bf16 a few gradients round to zero, and a newborn weight waits for its first."""
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


def sharded(stage: int, precision: str = "fp32"):
    return engine_over(llama(), stage, precision)


def engine_over(module, stage: int, precision: str):
    from cluster.engine import DeepSpeedEngine

    return DeepSpeedEngine(module, adamw(module), CLIPPING, precision=precision, zero_stage=stage, accumulation=2)


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


def check_frozen(stage: int, precision: str) -> None:
    """UP takes no step: its dead weights are zeroed once, on every rank, and nothing moves it. ZeRO-3 cuts it."""
    module = llama()
    module.get_parameter(UP).requires_grad_(False)
    engine, keep = engine_over(module, stage, precision), keeps(0)[UP]
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


def ranks(count: int, *arguments: str, environment: dict[str, str], module: str = __name__) -> list[str]:
    """Run a test file as that many ranks on this machine; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **environment, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "PYTHONHASHSEED": str(rank)},  # ranks that walk a set would each take an order of their own
            cwd=Path(__file__).parents[2],
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


@pytest.mark.parametrize(("options", "message"), [({"stage": 4}, "no ZeRO stage 4"), ({"precision": "fp16"}, "'fp16'")])
def test_settings_that_do_not_exist_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        sharded(**{"stage": 1, **options})


if __name__ == "__main__":
    check_stage(int(sys.argv[1]), Path(sys.argv[2]))
    check_bf16(int(sys.argv[1]), Path(sys.argv[2]))
    check_frozen(int(sys.argv[1]), "fp32")
    check_frozen(int(sys.argv[1]), "bf16")
    from cluster.rank import leave

    leave(0)
