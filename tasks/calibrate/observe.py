"""What a calibration method learns of a linear's inputs, kept as sums, so that ranks merge by adding.

Linears that read the same tensor (q/k/v, gate/up) share one statistic. Which they are is seen while the block runs: a
linear is where its weight is multiplied, so :class:`Watch` follows the products, whatever module makes them, and an
expert in a fused 3-D parameter is a matrix like any other.

Shapes: T = tokens, I = input features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tasks.models.linears import Linear


class InputNorms:
    """Sum of squares of each input feature."""

    def __init__(self, width: int) -> None:
        self.squares_I = torch.zeros(width, dtype=torch.float64)
        self.count = 0

    def add(self, input_TI: torch.Tensor) -> None:
        self.squares_I = self.squares_I.to(input_TI.device)
        self.squares_I += input_TI.float().square().sum(0, dtype=torch.float64)
        self.count += len(input_TI)

    def merge(self, other: InputNorms) -> None:
        self.squares_I += other.squares_I.to(self.squares_I.device)
        self.count += other.count

    @property
    def norm_I(self) -> torch.Tensor:
        """The length of each feature over all tokens, float32 [I]."""
        return self.squares_I.sqrt().float()

    @property
    def finite(self) -> bool:
        return bool(self.squares_I.isfinite().all())

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        """Take every feature to be equally large: for a matrix no token reached."""
        self.squares_I = torch.ones_like(self.squares_I, device=device)


class Moments(InputNorms):
    """Sum and sum of squares of each input feature: its mean and variance over all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.sum_I = torch.zeros(width, dtype=torch.float64)

    def add(self, input_TI: torch.Tensor) -> None:
        super().add(input_TI)
        self.sum_I = self.sum_I.to(input_TI.device) + input_TI.sum(0, dtype=torch.float64)

    def merge(self, other: Moments) -> None:
        super().merge(other)
        self.sum_I += other.sum_I.to(self.sum_I.device)

    @property
    def mean_I(self) -> torch.Tensor:
        return (self.sum_I / max(1, self.count)).float()

    @property
    def variance_I(self) -> torch.Tensor:
        """Never negative."""
        mean_I = self.sum_I / max(1, self.count)
        return (self.squares_I / max(1, self.count) - mean_I.square()).clamp(min=0).float()


class Hessian:
    """X^T X: the second derivative of the squared output error by the weights, up to a factor."""

    def __init__(self, width: int, dtype: str = "float32") -> None:
        self.sum_II = torch.zeros(width, width, dtype=getattr(torch, dtype))
        self.count = 0
        self.factors: dict[float, Any] = {}

    def add(self, input_TI: torch.Tensor) -> None:
        self.sum_II = self.sum_II.to(input_TI.device)
        input_TI = input_TI.to(self.sum_II.dtype)
        self.sum_II.addmm_(input_TI.T, input_TI)
        self.count += len(input_TI)

    def merge(self, other: Hessian) -> None:
        self.sum_II += other.sum_II.to(self.sum_II.device)
        self.count += other.count

    @property
    def mean_II(self) -> torch.Tensor:
        """The sum per token, so that its size does not depend on how much data was seen."""
        return self.sum_II / max(1, self.count)

    @property
    def norm_I(self) -> torch.Tensor:
        return self.sum_II.diagonal().sqrt().float()

    @property
    def finite(self) -> bool:
        return bool(self.sum_II.diagonal().isfinite().all())

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        self.sum_II = torch.eye(len(self.sum_II), dtype=self.sum_II.dtype, device=device)

    def factor(self, percent_damp: float):
        """The damped inverse's factor, computed once for all linears that share this statistic."""
        from tasks.calibrate.sweep import factor

        if percent_damp not in self.factors:
            self.factors[percent_damp] = factor(self.mean_II, percent_damp)
        return self.factors[percent_damp]


class Both:
    """Two observers of the same inputs: a method's own, and that of the method it builds on (None where that needs none)."""

    def __init__(self, own: Any, other: Any) -> None:
        self.own, self.other = own, other

    @property
    def parts(self) -> list[Any]:
        return [part for part in (self.own, self.other) if part is not None]

    def add(self, input_TI: torch.Tensor) -> None:
        for part in self.parts:
            part.add(input_TI)

    def merge(self, other: Both) -> None:
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part.merge(theirs)

    @property
    def finite(self) -> bool:
        return all(part.finite for part in self.parts)

    def assume_nothing(self, device: torch.device | str = "cpu") -> None:
        for part in self.parts:
            part.assume_nothing(device)

    @property
    def norm_I(self) -> torch.Tensor:
        return self.own.norm_I


Observer = InputNorms | Hessian | Both

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
    batches; :meth:`unseen` settles what got no input.
    """

    def __init__(self, linears: dict[str, Linear], parameters: dict[str, torch.Tensor], make: Callable[[Linear], Any]):
        super().__init__()
        self.statistics: dict[str, Any] = {}
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
        """Matrices no token reached; they get statistics that assume nothing. A linear never reached is an error."""
        missing = []
        for name, linear in self._linears.items():
            absent = [matrix for matrix in linear.matrices if matrix not in self.statistics]
            if len(absent) == len(linear.matrices):
                raise ValueError(f"unsupported: no input of {name} was seen while its block ran")
            for matrix in absent:
                self.statistics[matrix] = self._make(linear)
                self.statistics[matrix].assume_nothing(self._parameters[name].device)
            missing += absent
        for matrix, statistic in self.statistics.items():
            if not statistic.finite:
                raise ValueError(f"the inputs of {matrix} are not finite (NaN or infinity)")
        return missing

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
            self.statistics[matrix] = self._make(linear)
        with torch._C.DisableTorchFunction():
            self.statistics[matrix].add(value.reshape(-1, value.shape[-1]))
