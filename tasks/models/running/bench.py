"""The matrices of a model in every form they could be multiplied in, against the dense matrix: times, bytes, and from which
sparsity on a form wins.

One matrix stands for all of its shape and, of a pruned model, of its pattern. On a CPU one thread computes in float32: more
on a machine that does other things turn the order of the forms around. On a GPU it is bfloat16.

Shapes: O = outputs, I = inputs, N = tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from tasks.formats.mask import load_masks
from tasks.formats.pattern import NM, Block, Channel, Group, Pattern, Unstructured, parse_pattern
from tasks.models.files.layout import MASKS
from tasks.models.files.quantized import StoredWeights
from tasks.models.find.linears import find_linears
from tasks.models.running.forms import Form, best_and_median, dense, form_for, kernel_of, timed

Progress = Callable[[int, int, str], None]
OWN = "own"  # the matrix with the zeros it has in the model, not with random ones


@dataclass(frozen=True)
class Measured:
    """One form of one matrix. ``error`` is its largest difference from the dense matrix with the same zeros, relative to the
    largest output; ``why`` says what stood in the way where there is no time."""

    matrix: str
    columns: int
    form: str
    zeros: str
    sparsity: float
    seconds: float = 0.0
    median: float = 0.0
    dense_seconds: float = 0.0
    bytes: int = 0
    dense_bytes: int = 0
    error: float = 0.0
    kernel: str | None = None
    why: str | None = None

    @property
    def speedup(self) -> float:
        return self.dense_seconds / self.seconds


class Bench:
    """Measures the matrices of the model in ``directory``."""

    def __init__(self, directory: Path, device: str, rounds: int, seconds: float) -> None:
        self.device, self.rounds, self.seconds = device, rounds, seconds
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.weights = StoredWeights(directory)
        self.masks = load_masks(directory / MASKS)
        self.linears = find_linears(self.weights.skeleton)

    def measure(
        self, columns: Sequence[int], sparsities: Sequence[float], block: int, group: int, progress: Progress
    ) -> Iterator[Measured]:
        """Every matrix that stands for others, with each number of ``columns``."""
        patterns = [Unstructured(), Block(block), Group(group), Channel()]
        patterns += [NM(2, 4)] if self.device != "cpu" else []
        shapes: set[torch.Size] = set()
        with self._one_thread():
            for number, name in enumerate(self.shares):
                matrix_OI = self._matrix(name)
                for n in columns:
                    x_IN = torch.randn(matrix_OI.shape[1], n, generator=torch.Generator().manual_seed(0))
                    x_IN = x_IN.to(self.device, self.dtype)
                    if name in self.masks:
                        yield from self._own(name, matrix_OI, x_IN)
                    if matrix_OI.shape not in shapes:
                        yield from self._random(name, matrix_OI, x_IN, patterns, sparsities)
                shapes.add(matrix_OI.shape)
                progress(number + 1, len(self.shares), "matrices")

    @cached_property
    def shares(self) -> dict[str, int]:
        """The first matrix of each shape and pattern, and how many it stands for."""
        found: dict[tuple[object, ...], list[str]] = {}
        for name, linear in self.linears.items():
            mask = self.masks.get(name)
            kind = (linear.shape[-2:], mask.pattern if mask else None)
            found.setdefault(kind, []).extend(linear.matrices)
        return {names[0].partition("[")[0]: len(names) for names in found.values()}

    def _matrix(self, name: str) -> torch.Tensor:
        matrix = self.linears[name].matrix(self.weights.read(name)).to(self.device, self.dtype)
        return (matrix if matrix.ndim == 2 else matrix[0]).contiguous()

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _own(self, name: str, matrix_OI: torch.Tensor, x_IN: torch.Tensor) -> Iterator[Measured]:
        """The matrix with its own zeros, in the form that its pattern allows."""
        sparsity = float((matrix_OI == 0).double().mean())
        form, make = form_for(parse_pattern(self.masks[name].pattern))
        yield from self._compare(name, OWN, sparsity, matrix_OI, matrix_OI, x_IN, {"masked": dense, form: make})

    def _random(
        self, name: str, matrix_OI: torch.Tensor, x_IN: torch.Tensor, patterns: Sequence[Pattern], sparsities: Sequence[float]
    ) -> Iterator[Measured]:
        """A matrix of this shape with zeros of every pattern at random places, and, in a pruned model, with no others."""
        generator = torch.Generator().manual_seed(0)
        scores_OI = torch.rand(matrix_OI.shape, generator=generator)
        matrix_OI = torch.randn(matrix_OI.shape, generator=generator).to(matrix_OI)
        for pattern in patterns:
            form, make = form_for(pattern)
            for sparsity in [0.5] if isinstance(pattern, NM) else sparsities:
                try:
                    pattern.check(sparsity, matrix_OI.shape[1], matrix_OI.shape[0])
                except ValueError as error:  # sizes of this matrix that its blocks do not divide
                    yield Measured(name, x_IN.shape[1], form, str(pattern), sparsity, why=str(error))
                    continue
                masked_OI = matrix_OI * pattern.keep(scores_OI, sparsity).to(self.device)
                forms = {form: make} | ({"masked": dense} if isinstance(pattern, Unstructured) else {})
                yield from self._compare(name, str(pattern), sparsity, matrix_OI, masked_OI, x_IN, forms)

    def _compare(
        self,
        name: str,
        zeros: str,
        sparsity: float,
        matrix_OI: torch.Tensor,
        masked_OI: torch.Tensor,
        x_IN: torch.Tensor,
        makers: dict[str, Callable[[torch.Tensor], Form]],
    ) -> Iterator[Measured]:
        """The forms of one matrix against the dense one, in turn."""
        full, forms = dense(matrix_OI), {}
        for label, make in makers.items():
            try:
                forms[label] = make(masked_OI)
                forms[label].multiply(x_IN)
            except (RuntimeError, NotImplementedError) as error:  # torch has no such kernel for this device or size
                forms.pop(label, None)
                yield Measured(name, x_IN.shape[1], label, zeros, sparsity, why=" ".join(str(error).split()))
        runs = {label: lambda form=form: form.multiply(x_IN) for label, form in {"dense": full, **forms}.items()}
        times = timed(runs, self.rounds, self.seconds, self.device)
        right_ON = (masked_OI.float() @ x_IN.float()) if self.device == "cpu" else masked_OI @ x_IN
        for label, form in forms.items():
            off = (form.multiply(x_IN).float() - right_ON.float()).abs().max() / right_ON.float().abs().max().clamp_min(1e-30)
            yield Measured(
                name,
                x_IN.shape[1],
                label,
                zeros,
                sparsity,
                *best_and_median(times[label]),
                min(times["dense"]),
                form.bytes,
                full.bytes,
                float(off),
                kernel_of(runs[label], self.device),
            )
