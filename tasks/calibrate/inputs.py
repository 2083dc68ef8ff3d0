"""Scales of inputs that a scheme fixes beforehand: measured while the dense block runs, stored beside the module.

A runtime multiplies by one number instead of looking for a maximum in every token, at the price that an input larger than any
of the calibration text is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.calibrate.both import Both, Magnitudes
from tasks.calibrate.method import BlockView, Edit

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

    from tasks.calibrate.observe import InputStatistic
    from tasks.models.find.linears import Linear


def fixes(scheme: QuantizationScheme) -> bool:
    """Whether somebody has to know how large inputs get."""
    return scheme.input_activations is not None and scheme.input_activations.dynamic is False


def require_module(name: str) -> None:
    """Raise ValueError where a matrix shares its module with others, whose inputs then had one scale too."""
    if not name.endswith(".weight"):
        raise ValueError(f"unsupported: a module has one scale of its inputs, and {name} shares its module with others")


def input_scales(view: BlockView, scheme_of: Callable[[Linear], QuantizationScheme]) -> dict[str, Edit]:
    """What is stored beside the modules of a block whose inputs have a fixed scale, by module name."""
    from tasks.models.files.schemes import fixed_scale

    edits = {}
    for name, linear in view.linears.items():
        scheme, seen = scheme_of(linear), view.statistics.get(name)
        if scheme.input_activations is not None and fixes(scheme):
            assert isinstance(seen, Both) and isinstance(seen.own, Magnitudes)
            scale = fixed_scale(scheme.input_activations, seen.own.peak_I.max(), view.matrices[name].dtype)
            edits[name.removesuffix(".weight")] = Edit(extras={"input_scale": scale})
    return edits


def of_the_method(statistic: InputStatistic | None) -> InputStatistic | None:
    """What a method itself asked for, without the sizes beside it."""
    return statistic.other if isinstance(statistic, Both) else statistic
