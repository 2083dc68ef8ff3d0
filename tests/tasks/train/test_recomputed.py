"""Selective activation checkpointing keeps what products and attention give, and, of every architecture, what was counted."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from tasks.models.accounting import shape_of
from tasks.train import compiled, recomputed
from tasks.train.compiled import compile_blocks
from tasks.train.cost import Running, _selected
from tasks.train.recomputed import recompute_blocks
from tests.tasks import models_zoo as zoo


def gradients(architecture: str, recompute: str | None, compile: bool = False) -> dict[str, torch.Tensor]:
    torch._dynamo.reset()
    model = zoo.model(architecture, layers=1).train()
    recompute_blocks(model, recompute) if recompute else None
    compile_blocks(model) if compile else None
    torch.manual_seed(0)  # dropout
    model(zoo.batches()[0], use_cache=False).logits.logsumexp(-1).mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("architecture", zoo.ARCHITECTURES)
def test_the_gradients_of_every_architecture_are_the_same_bit_for_bit(architecture):
    plain, selected = gradients(architecture, None), gradients(architecture, "selective")
    assert plain.keys() == selected.keys() and all(torch.equal(plain[name], selected[name]) for name in plain)


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss"])
def test_and_within_what_is_compiled_without_a_word_of_torch(architecture, monkeypatch, caplog):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._logging._internal.warning_once.cache_clear()
    plain, selected = gradients(architecture, None, compile=True), gradients(architecture, "selective", compile=True)
    assert plain.keys() == selected.keys() and all(torch.equal(plain[name], selected[name]) for name in plain)
    assert not [record for record in caplog.records if "torch.utils.checkpoint" in record.getMessage()]


def test_what_is_compiled_hides_its_operations_and_is_refused():
    model = zoo.model("llama")
    compile_blocks(model)
    with pytest.raises(AssertionError, match="hides its operations"):
        recompute_blocks(model, "selective")


SIZES = {"gated": {"intermediate_size": 1024}, "narrow": {"intermediate_size": 768, "num_key_value_heads": 2}}


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_what_is_kept_is_what_a_plan_counts(size, low, compile, monkeypatch):
    """On what autograd keeps, and, where nothing is compiled, on what the checkpoints of the layers keep besides."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager_decomp_partition")  # inductor's partition, without its kernels
    torch._dynamo.reset()
    contexts, made = recomputed.create_selective_checkpoint_contexts, []
    monkeypatch.setattr(
        recomputed, "create_selective_checkpoint_contexts", lambda policy: made.append(contexts(policy)) or made[-1]
    )
    given = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, **size}
    model, found = LlamaForCausalLM(LlamaConfig(**given)).train(), {}
    shape, tokens_BT = shape_of(model), torch.zeros(2, 128, dtype=torch.int64)
    recompute_blocks(model, "selective")
    compile_blocks(model) if compile else None
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(value: torch.Tensor) -> torch.Tensor:
        found[value.untyped_storage().data_ptr()] = value  # held, so that no other takes its place
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), torch.autocast("cpu", enabled=low):
        model.model(tokens_BT, use_cache=False)
    if not compile:
        kept = chain.from_iterable(caching.storage.values() for caching, _ in made)
        for each in tree_leaves([list(entries.values()) for entries in kept]):
            keep(each.val) if hasattr(each, "val") else None
    outside = 3 * 4 * 256 * 256  # float32 of the norm after the layers
    total = sum(value.untyped_storage().nbytes() for place, value in found.items() if place not in weights) - outside
    how = Running(128, 2, 2, low=low, compile=compile, recompute="selective")
    assert _selected(shape, how) == pytest.approx(total, rel=0.15)
