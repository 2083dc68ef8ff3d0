"""DeepSpeed's configuration of each ZeRO stage, and where that stage keeps a parameter on this rank: float32 master, moments,
low-precision copy, gradient.

DeepSpeed has no common way to ask (its public calls gather full tensors, or work at stage 3 only, or return None at
stage 0), so the three layouts are written down here and nowhere else. They follow DeepSpeed 0.19.8, whose names are
private in part: tests/cluster/deepspeed/test_engine.py compares every stage with plain torch and fails first when they change.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch import nn

from tasks.train.engine import Shard


class Replicated:
    """Stage 0: every rank holds everything. In bf16 a list of float32 masters stands beside the list of parameters."""

    def __init__(self, wrapped, optimizer: torch.optim.Optimizer, rank: int) -> None:
        self.wrapped, self.state, self.rank = wrapped, optimizer.state, rank
        self.updated = [values for group in optimizer.param_groups for values in group["params"]]
        self._masters = {}
        if wrapped is not optimizer:
            pairs = zip(sum(wrapped.fp16_groups, []), sum(wrapped.fp32_groups, []), strict=True)
            self._masters = {id(low): high for low, high in pairs}

    def shard(self, parameter: nn.Parameter) -> Shard:
        master = self._masters.get(id(parameter), parameter)
        copies = (parameter.detach().view(-1),) if self._masters else ()
        return self._cut(master, 0, 0, master.numel(), copies)

    def gradient(self, parameter: nn.Parameter, shard: Shard) -> torch.Tensor | None:
        """This rank's piece of the reduced gradient as a flat view, or None without one."""
        return None if parameter.grad is None else parameter.grad.view(-1)

    def forget(self) -> None:
        """Of gradients on the host, after a step: a parameter that gets none in the next would be given these again."""
        for values in self.updated:
            if values.grad is not None:
                values.grad.zero_()

    def _cut(self, flat: torch.Tensor, offset: int, start: int, numel: int, copies: tuple) -> Shard:
        """Elements ``offset ... offset + numel`` of a tensor the optimizer updates."""
        piece = slice(offset, offset + numel)
        moments = {moment: values.view(-1)[piece] for moment, values in self.state[flat].items() if moment != "step"}
        return Shard(start, numel, flat.detach().view(-1)[piece], moments, copies)


class Fragments(Replicated):
    """Stages 1 and 2: all parameters of a group laid end to end and cut in equal parts, through tensors too.

    Each rank updates its part and gathers the others', so the parameter itself is whole on every rank.
    """

    def __init__(self, wrapped, optimizer: torch.optim.Optimizer, rank: int) -> None:
        self.wrapped, self.state, self.rank = wrapped, optimizer.state, rank
        self.updated = [group["params"][0] for group in optimizer.param_groups]

    def shard(self, parameter: nn.Parameter) -> Shard:
        mapping = parameter._hp_mapping
        if mapping is None:  # no part of it on this rank
            return self._cut(self.updated[0], 0, 0, 0, ())
        high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
        copies = (parameter.detach().view(-1)[low.start : low.start + low.numel],)
        return self._cut(self.updated[mapping.param_group_index], high.start, low.start, low.numel, copies)

    def gradient(self, parameter: nn.Parameter, shard: Shard) -> torch.Tensor | None:
        if not shard.numel:
            return None
        if getattr(self.wrapped, "cpu_offload", False):  # stage 1 in bf16 has another optimizer where it offloads none
            return self._on_host(parameter)
        gradient = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
        # at stage 1 in bf16 the buffer is that of the whole parameter
        return gradient if gradient.numel() == shard.numel else gradient[shard.start : shard.start + shard.numel]

    def forget(self) -> None:
        self.wrapped.averaged_gradients = {}  # which stay where a step was thrown away
        super().forget()

    def _on_host(self, parameter: nn.Parameter) -> torch.Tensor:
        """Beside the master, where the last micro-batch's copies may still be under way."""
        self.wrapped._wait_for_offload_copies()
        mapping, high = parameter._hp_mapping, parameter._hp_mapping.hp_fragment_address
        gradient = self.updated[mapping.param_group_index].grad
        return gradient.view(-1)[high.start : high.start + high.numel]


class Partitions(Replicated):
    """Stage 3: every parameter by itself in equal parts, the last ones padded; whole only while a module runs."""

    def __init__(self, wrapped, optimizer: torch.optim.Optimizer, rank: int) -> None:
        self.wrapped, self.state, self.rank = wrapped, optimizer.state, rank
        self.updated = wrapped.fp32_partitioned_groups_flat

    def shard(self, parameter: nn.Parameter) -> Shard:
        group, offset, size = self.wrapped.grad_position[self.wrapped.get_param_id(parameter)]
        start = self.rank * size
        numel = max(0, min(size, parameter.ds_numel - start))
        return self._cut(self.updated[group], offset, start, numel, (parameter.ds_tensor.detach().view(-1)[:numel],))

    def gradient(self, parameter: nn.Parameter, shard: Shard) -> torch.Tensor | None:
        return self.wrapped._get_fp32_grad_state_partition(parameter, False)[0].view(-1)[: shard.numel]


LAYOUTS = (Replicated, Fragments, Fragments, Partitions)


def configuration(
    zero_stage: int,
    precision: str,
    accumulation: int,
    device: str | torch.device,
    compiled: bool = False,
    offload: bool = False,
) -> dict:
    """Raises ValueError where DeepSpeed has no such settings; ``offload`` keeps masters and moments on the host."""
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"no precision {precision!r}; choose fp32 or bf16")
    if zero_stage not in (0, 1, 2, 3):
        raise ValueError(f"no ZeRO stage {zero_stage!r}; choose 0, 1, 2 or 3")
    if offload and not zero_stage:
        raise ValueError("ZeRO stage 0 offloads nothing; choose 1, 2 or 3")
    on_cpu = torch.device(device).type == "cpu"
    bucket = 5_000_000 if on_cpu else 200_000_000
    zero = {"stage": zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    zero |= {} if on_cpu else {"overlap_comm": True}  # gradients are sent while others are made; its default at stage 3 alone
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    elif zero_stage == 2 or (zero_stage == 1 and precision == "fp32"):
        zero["compute_grad_norm"] = False  # ours is over the masked gradient
    if zero_stage == 3:
        zero |= {"stage3_prefetch_bucket_size": bucket, "stage3_param_persistence_threshold": 5_000}
        zero["memory_efficient_linear"] = not compiled  # it asks each parameter for its number: a variant of every block
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # its own is compiled when first used; torch's is as good on the host
        "gradient_clipping": 0.0,  # its default is 1
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": False},
    }
    if precision == "bf16" and zero_stage > 0:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def initialize(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict):
    """deepspeed.initialize."""
    import deepspeed

    with quiet(), whole_while_compiled(module):
        return deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]


def compiled_in(module: nn.Module) -> list[nn.Module]:
    """The modules whose forward pass runs compiled (tasks/train/compiled.py)."""
    return [inner for inner in module.modules() if getattr(inner.forward, "compiled", False)]


@contextmanager
def whole_while_compiled(module: nn.Module) -> Iterator[None]:
    """At stage 3, have DeepSpeed gather the parameters of what runs compiled all at once, around it: inside it could not.

    To DeepSpeed such a module is a leaf. It would take the gradients of a leaf's parameters when those of its inputs are
    there, which is before those of a branch, and twice where it ran twice; they are taken one by one, as of other modules.
    """
    from deepspeed.runtime.zero import stage3
    from deepspeed.utils import set_z3_leaf_module

    for inner in compiled_in(module):
        set_z3_leaf_module(inner, True)
    asked = stage3.z3_leaf_parameter
    stage3.z3_leaf_parameter = lambda parameter: False
    try:
        yield
    finally:
        stage3.z3_leaf_parameter = asked


def cutter(settings: dict, dtype: torch.dtype):
    """What DeepSpeed cuts up parameters with at stage 3; it treats linear maps from then on as when it cuts up a model."""
    from deepspeed.runtime.zero.partition_parameters import Init

    with quiet():
        found = Init(config_dict_or_path=settings, dtype=dtype)
    if settings["zero_optimization"]["memory_efficient_linear"]:
        found._enable_mem_efficient_linear()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice DeepSpeed prints and logs to stdout, and compiling nothing; errors pass."""
    import deepspeed

    # Its gloo backend would compile a shared-memory operator (90 s cold) that only its inference calls use.
    deepspeed.ops.__compatible_ops__ = {}
    # torch 2.13 tells DeepSpeed at every collective that the name it uses will change.
    warnings.filterwarnings("ignore", r"`torch.distributed\.\w+` is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
