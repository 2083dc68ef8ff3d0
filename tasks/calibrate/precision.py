"""Mixed precision: bits where they matter, solved under a budget from measured sensitivities (after HAWQ-V3, arXiv 2011.10680).

Matrices that read one input (queries, keys and values; gate and up) get one scheme, since serving engines fuse them. They are
rounded alone under each scheme that may be chosen, and so is what they read where a scheme rounds inputs; the relative squared
error of their block's output is noted, token by token. Taking errors to add up, the schemes with which all matrices together
lose least within the budget are those of a multiple-choice knapsack, an integer programme that HiGHS solves. Sensitivities are
those of rounding to nearest, whatever quantizer makes what was chosen: it costs no sweep per scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.formats.grid import fitting
from tasks.models.files.schemes import Spec, check_written, others, regrouped

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme

    from tasks.calibrate.method import BlockView
    from tasks.calibrate.quantizer import Quantizer
    from tasks.formats.grid import Grid
    from tasks.models.allocation import Scan
    from tasks.models.find.linears import Linear

Table = dict[str, dict[int, float]]  # by matrix and number of the choice
BYTE = 8
SCALE_BITS = 16  # of a stored scale: models are stored in 16 bits where bytes matter


class Precision(BaseModel):
    """A scheme for each matrix, chosen under a budget."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    budget: float = Field(4.25, gt=0, le=16)
    """Bits per weight of the prunable matrices as they are stored, their scales and zero points included: schemes that round
    inputs have a byte for each weight, however few its bits."""
    choices: tuple[Spec, ...] = Field(("W2A16", "W3A16", "W4A16", "W6A16", "W8A16"), min_length=2)
    """Presets a matrix may get, written as in scheme; one whose groups do not divide a matrix's width is none for it."""
    sequences: int = Field(16, gt=0)
    """About how many calibration sequences a trial sees."""

    @field_validator("choices", mode="before")
    @classmethod
    def _written(cls, given: object) -> object:
        specs = list(given) if isinstance(given, (list, tuple)) else []
        for spec in specs:
            check_written(spec)
            if specs.count(spec) > 1:
                raise ValueError(f"{spec} is named twice; name each once")
        return given

    def schemes(self, method: Quantizer) -> list[QuantizationScheme]:
        """The choices; ValueError where a quantizer cannot make one."""
        given = {str(number): spec for number, spec in enumerate(self.choices)}
        return method.model_copy(update={"scheme": None, "schemes": given}).named_schemes()

    def check(self, method: Quantizer, linears: Mapping[str, Linear]) -> None:
        """Raise ValueError where no choice fits a matrix, or the budget is too small for any."""
        bits = {}
        for name, linear in linears.items():
            if not (schemes := self._fitting(method, linear)):
                remedy = self._remedy(method, [other.shape[-1] for other in linears.values()])
                raise ValueError(f"precision.choices: no groups divide the input width {linear.shape[-1]} ({name}); {remedy}")
            bits[name] = _bits([linear], schemes)
        require_affordable(bits, self.budget * sum(prod(linear.shape) for linear in linears.values()))

    def _fitting(self, method: Quantizer, linear: Linear) -> dict[int, QuantizationScheme]:
        """What a matrix may become, by the number of the choice."""
        schemes = self.schemes(method)
        if any(scheme.weights is None for scheme in schemes):
            raise ValueError("precision.choices: UNQUANTIZED is no choice; name presets that round weights")
        return {number: scheme for number, scheme in enumerate(schemes) if fits(_grid(scheme), linear.shape[-1])}

    def _remedy(self, method: Quantizer, widths: list[int]) -> str:
        """How the choices, all of which have groups, are written with some that divide all widths."""
        sizes = fitting(max(_grid(scheme).group_size or 0 for scheme in self.schemes(method)), widths)
        written = ", ".join(regrouped(spec, sizes[0] if sizes else None) for spec in self.choices)
        return f"write choices: [{written}]{others(sizes)}"

    def choose(self, method: Quantizer, scan: Scan) -> dict[str, Spec]:
        """The scheme of every matrix, by the name of its module; ValueError where the budget is too small for any."""
        from tasks.calibrate.both import Magnitudes

        together: dict[str, list[Linear]] = {}
        losses, bits, weights = Table(), Table(), 0
        for view in scan.blocks(lambda linear: Magnitudes(linear.shape[-1])):
            outputs = list(view.run(-(-self.sequences // len(view.inputs[0]))))
            for linears in _readers(view):
                name, schemes = linears[0].name, self._fitting(method, linears[0])
                together[name], losses[name] = linears, self.losses(view, linears, schemes, outputs)
                bits[name] = _bits(linears, schemes)
                weights += sum(prod(linear.shape) for linear in linears)
        chosen = cheapest(losses, bits, self.budget * weights)
        specs = {linear.name: self.choices[number] for name, number in chosen.items() for linear in together[name]}
        return {name.removesuffix(".weight"): spec for name, spec in specs.items()}

    def losses(
        self,
        view: BlockView,
        linears: Sequence[Linear],
        schemes: Mapping[int, QuantizationScheme],
        outputs: list[torch.Tensor],
    ) -> dict[int, float]:
        """What it costs to compute some linears of a block that read one input as each scheme has it, by number; ``outputs``
        are those of the block as it is."""
        from tasks.calibrate.method import Edit
        from tasks.calibrate.scan import trial_error

        given = {matrix: view.matrices[matrix] for linear in linears for matrix in linear.matrices}
        found = {}
        for number, scheme in schemes.items():
            grid = _grid(scheme)
            edits = {matrix: Edit(grid.round_matrix(value, *grid.fit(value))) for matrix, value in given.items()}
            with _inputs_rounded(view, linears, scheme):
                found[number] = trial_error(view, edits, outputs)
        return found


def _inputs_rounded(view: BlockView, linears: Sequence[Linear], scheme: QuantizationScheme) -> AbstractContextManager[None]:
    """The block with what these linears read rounded as a scheme has it, by one scale from the calibration text where it fixes
    that."""
    from tasks.calibrate.both import Magnitudes
    from tasks.calibrate.inputs import fixes, require_module
    from tasks.models.export import inputs_quantized
    from tasks.models.files.schemes import fixed_scale

    args, scales = scheme.input_activations, {}
    if args is None:
        return nullcontext()
    for linear in linears:
        require_module(linear.name)
        if fixes(scheme):
            seen = view.statistics[linear.name]
            assert isinstance(seen, Magnitudes)
            scale = fixed_scale(args, seen.peak_I.max(), view.matrices[linear.name].dtype)
            scales[linear.name.removeprefix(view.prefix).removesuffix(".weight")] = {"input_scale": scale}
    names = [linear.name.removeprefix(view.prefix) for linear in linears]
    return inputs_quantized(view.module, dict.fromkeys(names, scheme), scales)


def _readers(view: BlockView) -> list[list[Linear]]:
    """The linears of a block, those together that read one input."""
    from tasks.calibrate.folds import readers_of_one_input

    groups = [[view.linears[name] for name in names] for names in readers_of_one_input(view)]
    found = {linear.name for group in groups for linear in group}
    return groups + [[linear] for name, linear in view.linears.items() if name not in found]


def _bits(linears: Sequence[Linear], schemes: Mapping[int, QuantizationScheme]) -> dict[int, float]:
    """What some matrices take together, by the number of the choice."""
    return {number: sum(stored_bits(linear.shape, scheme) for linear in linears) for number, scheme in schemes.items()}


def _grid(scheme: QuantizationScheme) -> Grid:
    """Of a scheme that rounds weights."""
    from tasks.models.files.schemes import grid_of

    assert scheme.weights is not None
    return grid_of(scheme.weights)


def fits(grid: Grid, width: int) -> bool:
    """Whether a grid's groups divide an input width."""
    return not grid.group_size or width % grid.group_size == 0


def stored_bits(shape: tuple[int, ...], scheme: QuantizationScheme) -> float:
    """What a matrix takes with its scales and zero points, as the scheme's format stores them: packed, or a byte for each."""
    from tasks.models.files.schemes import packed

    grid = _grid(scheme)
    code = grid.bits if packed(scheme) else BYTE
    groups = 1.0 if grid.whole else prod(shape) / (grid.group_size or shape[-1])
    return code * prod(shape) + groups * (SCALE_BITS + (0 if grid.symmetric else code))


def require_affordable(bits: Table, budget: float) -> None:
    """Raise ValueError where the cheapest choices cost more than the budget."""
    least = sum(min(its.values()) for its in bits.values())
    if least > budget:
        raise ValueError(f"precision.budget: the cheapest choices take {least / budget:.3g} times as much; raise it")


def cheapest(losses: Table, bits: Table, budget: float) -> dict[str, int]:
    """One choice for each matrix such that their ``bits`` sum up to ``budget`` at most and their ``losses`` to the least."""
    import numpy
    from scipy.optimize import Bounds, LinearConstraint, milp

    require_affordable(bits, budget)
    pairs = [(name, choice) for name in losses for choice in losses[name]]
    loss, cost = (numpy.array([table[name][choice] for name, choice in pairs]) for table in (losses, bits))
    one_each = numpy.array([[name == row for name, _ in pairs] for row in losses], dtype=float)
    found = milp(
        loss / max(float(loss.max()), 1e-300),
        integrality=numpy.ones(len(pairs)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(cost[None] / budget, 0, 1)],
        options={"mip_rel_gap": 1e-6},
    )
    if not found.success:
        raise ValueError(f"no choice of schemes was found: {found.message}")
    return {name: choice for (name, choice), taken in zip(pairs, found.x, strict=True) if taken > 0.5}
