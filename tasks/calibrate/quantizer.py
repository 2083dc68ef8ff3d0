"""The root of quantizers: each names a scheme per linear, and rounds the live weights to that scheme's grid.

The scheme decides what is stored and how it is run; the quantizer only which of the grid's values a weight takes. So a new
scheme needs no quantizer to change, and one that a quantizer cannot make is refused when a plan is made.

Shapes: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer, model_validator

from tasks.calibrate.method import BlockMethod, BlockView, Edit
from tasks.calibrate.ranges import Range
from tasks.formats.grid import fitting
from tasks.models.files.schemes import Spec, check_written, others, regrouped

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

    from tasks.calibrate.observe import Hessian, InputStatistic
    from tasks.formats.grid import Grid
    from tasks.formats.pattern import Pattern
    from tasks.models.find.linears import Linear

INTEGERS = ("bits", "group_size", "symmetric")


class Quantizer(BlockMethod):
    """Moves every live weight onto a grid. It sees the mask and keeps it. One that is ``plain`` treats each matrix for itself,
    so that another can build on it; one that ``prunes`` makes masks besides."""

    plain: ClassVar[bool] = True
    prunes: ClassVar[bool] = False

    bits: int = Field(4, ge=2, le=8)
    """Bits per weight."""
    group_size: int | None = Field(128, ge=1)
    """Consecutive inputs that share a scale; none is one scale per row."""
    symmetric: bool = True
    """Whether the grid is symmetric around zero, without zero points."""
    scheme: Spec | None = None
    """A preset of compressed-tensors instead of bits, as FP8_DYNAMIC or {W4A16: {group_size: 64}}."""
    schemes: dict[str, Spec] = Field(default_factory=dict)
    """Other presets for matrices with this part in their name, as {down_proj: W8A16}; UNQUANTIZED leaves them as they are."""
    range: Range = "minmax"
    """What a group's scale is fitted to: its ends (minmax), or, clipping what is beyond, the least error of its weights (mse)
    or of its output on the calibration text (output)."""

    @field_validator("scheme", "schemes", mode="before")
    @classmethod
    def _written(cls, given: object, info: ValidationInfo) -> object:
        for spec in given.values() if info.field_name == "schemes" and isinstance(given, dict) else [given]:
            if given is not None:
                check_written(spec)
        return given

    @model_validator(mode="after")
    def _said_once(self) -> Quantizer:
        if self.scheme and (twice := [name for name in INTEGERS if name in self.model_fields_set]):
            raise ValueError(
                f"scheme says what {twice[0]} says; leave one of them out, or write scheme: {{W4A16: {{group_size: 64}}}}"
            )
        return self

    @model_serializer(mode="wrap")
    def _saying(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """What is said twice, or says nothing, is no part of a method's identity."""
        silent = {*(INTEGERS if self.scheme else ("scheme",)), *(() if self.schemes else ("schemes",))}
        silent |= {"range"} if self.range == type(self).model_fields["range"].default else set()
        return {name: value for name, value in write(self).items() if name not in silent}

    def suit(self, scheme: QuantizationScheme) -> None:
        """Raise ValueError, saying what of it, when the method cannot make a scheme."""
        from tasks.models.files.schemes import grid_of, require_measurable

        require_measurable(scheme)
        if scheme.weights is not None:
            grid_of(scheme.weights)

    def scheme_of(self, linear: Linear) -> QuantizationScheme:
        """What is to become of one linear."""
        return self._made_of(self.spec_named(linear.name))

    def scheme_of_all(self) -> QuantizationScheme:
        """What is to become of a linear that has no scheme of its own."""
        return self._made_of(self.scheme)

    def _made_of(self, spec: Spec | None) -> QuantizationScheme:
        from tasks.models.files.schemes import integers

        return self._read(spec) if spec else integers(self.bits, self.group_size, self.symmetric)

    def spec_named(self, name: str) -> Spec | None:
        """The preset that was named for a matrix of this name."""
        parts = [part for part in self.schemes if f".{part}." in f".{name}."]
        if any(self.schemes[part] != self.schemes[parts[0]] for part in parts):
            raise ValueError(f"schemes: {name} is in {' and in '.join(parts)}, which differ; name parts apart")
        return self.schemes[parts[0]] if parts else self.scheme

    def grid_of(self, linear: Linear) -> Grid | None:
        """The values that the weights of one linear may take; None where they stay as they are."""
        from tasks.models.files.schemes import grid_of

        weights = self.scheme_of(linear).weights
        return None if weights is None else grid_of(weights)

    def named_schemes(self) -> list[QuantizationScheme]:
        """Those that presets were named for; ValueError where there is no such preset, or the method cannot make it."""
        return [self._read(spec) for spec in (self.scheme, *self.schemes.values()) if spec]

    def _read(self, spec: Spec) -> QuantizationScheme:
        from tasks.models.files.schemes import presets, read_scheme

        scheme = read_scheme(spec, self.makes)
        try:
            self.suit(scheme)
        except ValueError as error:
            name, fields = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
            changed = " and ".join(f"{field} {value}" for field, value in fields.items())
            remedy = f"leave {' and '.join(fields)} out, or " if fields and self.makes(name) else ""
            raise ValueError(
                f"{self.name} cannot make {name}{f' with {changed}' if fields else ''}: {error}; "
                f"{remedy}choose one of {', '.join(filter(self.makes, presets()))}"
            ) from None
        return scheme

    def makes(self, name: str) -> bool:
        from tasks.models.files.schemes import read_scheme

        try:
            self.suit(read_scheme(name))
        except ValueError:
            return False
        return True

    def check_width(self, width: int) -> None:
        """Raise ValueError when no grid fits an input width, as far as one is the same for all matrices."""
        if not self.schemes and not self.scheme and self.group_size and width % self.group_size:
            sizes = fitting(self.group_size, [width])
            raise ValueError(
                f"group_size {self.group_size} does not divide the input width {width}; "
                f"write group_size: {sizes[0] if sizes else 'null, for a scale per row'}{others(sizes)}"
            )

    def admit(self, linears: Mapping[str, Linear], allocation: Mapping[str, float], pattern: Pattern) -> None:
        from tasks.calibrate.inputs import fixes, require_module

        for part in self.schemes:
            if not any(f".{part}." in f".{name}." for name in linears):
                raise ValueError(
                    f"schemes: no matrix has {part!r} as a part of its name; choose one of {', '.join(_parts(linears))}"
                )
        grids = {name: self.grid_of(linear) for name, linear in linears.items()}
        if not any(grids.values()):
            raise ValueError("scheme UNQUANTIZED leaves every matrix as it is; name another, or leave the stage out")
        for name, grid in grids.items():
            if grid is None:
                continue
            if fixes(self.scheme_of(linears[name])):
                require_module(name)
            try:
                grid.check(linears[name].shape[-1])
            except ValueError as error:
                sizes = fitting(grid.group_size, [linears[other].shape[-1] for other, its in grids.items() if its == grid])
                written = self._grouped(linears[name], sizes[0] if sizes else None)
                raise ValueError(f"{error} ({name}); write {written}{others(sizes)}") from None

    def _grouped(self, linear: Linear, size: int | None) -> str:
        """How groups of a size (None: a scale per row) are written for the matrices of one linear's scheme."""
        spec = self.spec_named(linear.name)
        if spec is None:
            return f"group_size: {size or 'null, for a scale per row'}"
        written = regrouped(spec, size)
        parts = [part for part, its in self.schemes.items() if its == spec]
        return f"scheme: {written}" if spec == self.scheme else f"schemes: {{{parts[0]}: {written}}}"

    def statistic(self, linear: Linear) -> InputStatistic | None:
        """A new observer of what the method has to know of the inputs of one matrix; None when it needs no data."""
        from tasks.calibrate.observe import Hessian

        return Hessian(linear.shape[-1]) if self.range == "output" else None

    def measures(self, linear: Linear) -> bool:
        """Whether it has to be known, besides, how large the inputs of a matrix get."""
        from tasks.calibrate.inputs import fixes

        return fixes(self.scheme_of(linear))

    def observer(self, linear: Linear) -> InputStatistic | None:
        from tasks.calibrate.both import Both, Magnitudes

        own = self.statistic(linear)
        return Both(Magnitudes(linear.shape[-1]), own) if self.measures(linear) else own

    def fit(self, grid: Grid, weight_OI: torch.Tensor, hessian: Hessian | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The scales [O, G] and zero points of one matrix."""
        from tasks.calibrate.ranges import fit_range

        return fit_range(grid, weight_OI, self.range, hessian)

    def solve_linear(
        self,
        weight_OI: torch.Tensor,
        statistics: InputStatistic | None,
        grid: Grid,
        keep_OI: torch.Tensor | None = None,
    ) -> Edit:
        """Quantize one matrix. ``keep_OI`` is its mask: what is dead there stays zero. The edit's extras are the grid's
        ``scale`` and ``zero_point``."""
        raise NotImplementedError

    def grids_of(self, view: BlockView) -> dict[str, Grid]:
        """Those of the matrices that are to be rounded."""
        grids: dict[str, Grid] = {}
        for linear in view.linears.values():
            if grid := self.grid_of(linear):
                grids |= dict.fromkeys(linear.matrices, grid)
        return grids

    def solve(self, view: BlockView) -> dict[str, Edit]:
        from tasks.calibrate.inputs import input_scales, of_the_method

        grids = self.grids_of(view)

        def solve_one(name: str) -> Edit:
            statistic = of_the_method(view.statistics.get(name))
            return self.solve_linear(view.matrices[name], statistic, grids[name], view.keep.get(name))

        return view.each(solve_one, grids) | input_scales(view, self.scheme_of)


def _parts(names: Iterable[str]) -> list[str]:
    """The parts of names that tell them apart, numbers left out."""
    parts = [name.split(".") for name in names]
    shared = set.intersection(*map(set, parts))
    return list(dict.fromkeys(part for each in parts for part in each if part not in shared and not part.isdigit()))
