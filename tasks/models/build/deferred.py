"""A model that begins at random, one tensor at a time: the bits that building it whole gives, without ever holding it whole.

The model is built on the meta device, where operations take no memory and draw no numbers, and every operation that makes or
changes a tensor is noted. Then the same operations are run on the CPU in the same order, so that the generator gives each
tensor what it would have given it, and a tensor is handed over and dropped when nothing is left to be done to it. What is
written over (a constructor's numbers, before those of the architecture) is drawn and dropped at once.

A surgery may look at the numbers of the layer it replaces, which are not there on the meta device: such a model is built whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tasks.models.build.building import builder, hollow
from tasks.models.build.surgery import surgeries_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Piece = Callable[[int, int], torch.Tensor]  # (start, count) -> so many float32 elements of a flattened tensor, from there on
_OVERWRITING = {"normal_", "uniform_", "zero_", "fill_", "copy_"}


@dataclass(frozen=True)
class _Call:
    function: Any
    args: tuple
    kwargs: dict[str, Any]
    made: Any

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Of the meta device."""
        found = tree_leaves((self.args, self.kwargs, self.made))
        return [each for each in found if isinstance(each, torch.Tensor) and each.is_meta]

    @property
    def looks(self) -> bool:
        """Whether it makes another view of memory that is there."""
        before = {_memory(each) for each in tree_leaves((self.args, self.kwargs)) if isinstance(each, torch.Tensor)}
        after = {_memory(each) for each in tree_leaves(self.made) if isinstance(each, torch.Tensor)}
        return not self.function._schema.is_mutable and after <= before

    def overwrites(self) -> int | None:
        """The memory that it writes all over, whatever was there."""
        if self.function.overloadpacket.__name__ not in _OVERWRITING:
            return None
        target = self.args[0]
        whole = target.numel() * target.element_size() == target.untyped_storage().nbytes()
        return _memory(target) if whole and target.is_meta else None


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        call = _Call(function, args, kwargs or {}, made)
        if call.tensors:
            self.calls.append(call)
        return made


class Drawn:
    """The numbers a new model begins with, tensor by tensor: (name of a parameter or buffer, its :data:`Piece`). Each time
    it is gone through they are drawn from ``seed`` anew, by the global generator, as if the model were built."""

    def __init__(self, model: PreTrainedModel, calls: list[_Call], seed: int) -> None:
        self.calls, self.seed = calls, seed
        self.owners: dict[int, list[tuple[str, torch.Tensor]]] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.owners.setdefault(_memory(tensor), []).append((name, tensor))
        self.there: dict[int, torch.UntypedStorage] = {}  # while it is gone through
        self._plan()

    def _plan(self) -> None:
        """After which call a memory is done with: for good, or until it is written over."""
        self.over: list[list[int]] = [[] for _ in self.calls]
        self.last: dict[int, int] = {}
        touched: set[int] = set()
        for index in range(len(self.calls) - 1, -1, -1):
            call = self.calls[index]
            for memory in dict.fromkeys(_memory(each) for each in call.tensors):  # in one order on every rank
                self.last.setdefault(memory, index)
                if memory not in touched:
                    self.over[index].append(memory)
                    touched.add(memory)
            touched.discard(call.overwrites() or 0)

    def __iter__(self) -> Iterator[tuple[str, Piece]]:
        torch.manual_seed(self.seed)
        there = self.there = {}
        for index, call in enumerate(self.calls):
            if not call.looks:
                self._run(call, there)
            for memory in self.over[index]:
                for name, tensor in self.owners.get(memory, []) if self.last[memory] == index else ():
                    yield name, pieces_of(_real(tensor, there))
                there.pop(memory, None)

    @torch.no_grad()
    def _run(self, call: _Call, there: dict[int, torch.UntypedStorage]) -> None:
        if (memory := call.overwrites()) is not None and memory not in there:
            there[memory] = torch.UntypedStorage(call.args[0].untyped_storage().nbytes())
        args, kwargs = tree_map(lambda each: _real(each, there), (call.args, call.kwargs))
        made = call.function(*args, **kwargs)
        for wanted, got in zip(tree_leaves(call.made), tree_leaves(made), strict=True):
            if isinstance(wanted, torch.Tensor) and wanted.is_meta:
                there.setdefault(_memory(wanted), got.untyped_storage())


def deferred(config: PretrainedConfig, seed: int) -> tuple[PreTrainedModel, Drawn] | None:
    """A config's model, hollow, and the float32 numbers that it begins with; None where it has to be built whole."""
    if surgeries_of(config):
        return None
    with _as_if_there(), torch.device("meta"), _Record() as record:
        model = builder(config).from_config(config, dtype=torch.float32)
    drawn = Drawn(model, record.calls, seed)
    return hollow(model), drawn


@contextmanager
def _as_if_there() -> Iterator[None]:
    """transformers leaves out the initialisation of a model on the meta device, of which here every step is noted."""
    from transformers import modeling_utils

    asked = modeling_utils.get_torch_context_manager_or_global_device
    modeling_utils.get_torch_context_manager_or_global_device = lambda: None
    try:
        yield
    finally:
        modeling_utils.get_torch_context_manager_or_global_device = asked


def pieces_of(values: torch.Tensor) -> Piece:
    return lambda start, count: values.detach().flatten()[start : start + count].float()


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _real(value: Any, there: dict[int, torch.UntypedStorage]) -> Any:
    """What stands for an argument on the CPU."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "meta" else value
    if not isinstance(value, torch.Tensor) or not value.is_meta:
        return value
    empty = torch.empty(0, dtype=value.dtype)
    return empty.set_(there[_memory(value)], value.storage_offset(), value.size(), value.stride())
