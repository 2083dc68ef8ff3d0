"""Capture the inputs of every matrix of a block while the block runs, and feed them to observers.

Matrix products are intercepted, whatever module computes them, so an expert in a fused 3-D parameter is a matrix like any
other. What a module returns is captured by a forward hook.

Shapes: T = tokens, I = input features, O = output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tasks.calibrate.observe import InputStatistic, Statistic
from tasks.models.find.linears import Linear

Make = Callable[[Linear], InputStatistic | None]
MakeOutput = Callable[[str, torch.nn.Module], Statistic | None]

# Which argument of a product is the input and which the weight; F.linear reads the weight as [O, I], the rest [I, O].
_PRODUCTS: dict[Callable, tuple[int, int]] = {
    functional.linear: (0, 1),
    torch.addmm: (1, 2),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm), (0, 1)),
    **dict.fromkeys((torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm), (0, 1)),
}


class Watch(TorchFunctionMode):
    """Feeds an observer per distinct input of the given linears while a block runs inside it.

    ``statistics`` maps matrix names to observers, shared where inputs are. :meth:`next_batch` must be called between
    batches; :meth:`unseen` tells what got no input.
    """

    def __init__(self, linears: dict[str, Linear], parameters: dict[str, torch.Tensor], make: Make):
        super().__init__()
        self.statistics: dict[str, InputStatistic] = {}
        self._linears, self._make, self._parameters = linears, make, parameters
        self._matrices: dict[int, tuple[str, Linear]] = {}
        self._stacks: dict[int, Linear] = {}
        self._fresh: dict[tuple, tuple[str, torch.Tensor]] = {}
        for name, linear in linears.items():
            stored = parameters[name]
            if len(linear.shape) == 3:
                self._stacks[stored.data_ptr()] = linear
            for matrix, expert in linear.matrices.items():
                address = (stored if expert is None else stored[expert]).data_ptr()
                self._matrices[address] = (matrix, linear)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        positions = _PRODUCTS.get(function)
        if positions and len(args) > positions[1]:
            self._see(args[positions[0]], args[positions[1]])
        return function(*args, **(kwargs or {}))

    def next_batch(self) -> None:
        self._fresh.clear()

    def unseen(self) -> list[str]:
        """What :func:`complete` finds of this watch."""
        return complete(self.statistics, self._linears, self._make, next(iter(self._parameters.values())).device)

    def _see(self, value: Any, weight: Any) -> None:
        if not (isinstance(value, torch.Tensor) and isinstance(weight, torch.Tensor)) or weight.is_meta:
            return
        address = weight.data_ptr()
        if weight.ndim == 3 and value.ndim == 3 and address in self._stacks:
            for expert, matrix in enumerate(self._stacks[address].matrices):
                self._feed(matrix, self._stacks[address], value[expert])
        elif weight.ndim == 2 and address in self._matrices:
            matrix, linear = self._matrices[address]
            if weight.shape.numel() == linear.shape[-1] * linear.shape[-2]:
                self._feed(matrix, linear, value)

    def _feed(self, matrix: str, linear: Linear, value: torch.Tensor) -> None:
        assert value.shape[-1] == linear.shape[-1], f"{matrix}: the input has {value.shape[-1]} features, not its own"
        identity = (value.data_ptr(), value.shape, value.stride(), value._version)
        if identity in self._fresh:
            shared = self.statistics[self._fresh[identity][0]]
            known = self.statistics.setdefault(matrix, shared)
            assert known is shared, f"{matrix} shares its input in one batch and not in another"
            return
        if value.numel() == 0:
            return
        self._fresh[identity] = (matrix, value)  # holding the tensor keeps its address from being used again
        if matrix not in self.statistics:
            assert (made := self._make(linear)) is not None, "only what is observed is watched"
            self.statistics[matrix] = made
        with torch._C.DisableTorchFunction():
            self.statistics[matrix].add(value.reshape(-1, value.shape[-1]))


@contextmanager
def watch_outputs(block: torch.nn.Module, make: MakeOutput) -> Iterator[dict[str, Statistic]]:
    """Feed an observer per module of a block that ``make`` gives one, by the module's name within it, with what it returns, or
    with the first of several things."""
    statistics: dict[str, Statistic] = {}

    def watching(name: str, statistic: Statistic) -> Callable[..., None]:
        def see(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            value_BTO = output[0] if isinstance(output, tuple) else output
            if value_BTO.numel():
                with torch._C.DisableTorchFunction():
                    statistics.setdefault(name, statistic).add(value_BTO.reshape(-1, value_BTO.shape[-1]))

        return see

    with ExitStack() as hooks:
        for name, module in block.named_modules():
            if (statistic := make(name, module)) is not None:
                hooks.enter_context(module.register_forward_hook(watching(name, statistic)))
        yield statistics


def require_finite(outputs: dict[str, Statistic]) -> None:
    for module, statistic in outputs.items():
        if not statistic.finite:
            raise ValueError(f"the outputs of {module} are not finite (NaN or infinity)")


def complete(
    statistics: dict[str, InputStatistic], linears: dict[str, Linear], make: Make, device: torch.device | str
) -> list[str]:
    """The matrices that no token reached; they get statistics of identically distributed features. A linear never reached is
    an error, and so are inputs that are not finite."""
    missing = []
    for name, linear in linears.items():
        absent = [matrix for matrix in linear.matrices if matrix not in statistics]
        if len(absent) == len(linear.matrices):
            raise ValueError(f"unsupported: no input of {name} was seen while its block ran")
        for matrix in absent:
            assert (made := make(linear)) is not None, "only what is observed is completed"
            made.assume_nothing(device)
            statistics[matrix] = made
        missing += absent
    for matrix, statistic in statistics.items():
        if not statistic.finite:
            raise ValueError(f"the inputs of {matrix} are not finite (NaN or infinity)")
    return missing
