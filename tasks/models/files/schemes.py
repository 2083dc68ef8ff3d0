"""Quantization schemes are compressed-tensors' own values: its presets by name, its argument types for what differs.

A scheme says what a linear's weights and inputs are rounded to. Its name is what recipes, configs and serving engines
call it by, and which of its storage formats holds it the library itself infers. Only the arithmetic of rounding weights is
here too, as :class:`tasks.formats.grid.Grid`, since a method rounds column by column while it solves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.formats.grid import Grid
from tasks.methods import validate

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from torch import nn

Spec = str | dict[str, dict[str, Any]]  # NAME, or {NAME: {field of its weights: value}}
FIELDS = ("num_bits", "type", "symmetric", "group_size", "strategy")  # of weights, that a grid is made by
GROUPS = "groups are {strategy: group, group_size: N}, a scale per row is {strategy: channel, group_size: null}"
PACKED = "pack-quantized"
ONE_ASYMMETRIC = "transformers reads packed asymmetric weights back where all have one scheme alone; name no other beside it"


def check_written(spec: object) -> None:
    """Raise ValueError unless it has the form of a :data:`Spec`; which presets there are is asked of the library, later."""
    fields = list(spec.values()) if isinstance(spec, dict) else []
    if not ((isinstance(spec, str) and spec) or (len(fields) == 1 and isinstance(fields[0], dict))):
        raise ValueError(
            "a scheme is written NAME or {NAME: {field of its weights: value}}, as W4A16 or {W4A16: {group_size: 64}}"
        )


def regrouped(spec: Spec, size: int | None) -> str:
    """How a recipe writes a preset in groups of a size; None is a scale per row."""
    name, fields = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    groups = {"group_size": size} if size else {"strategy": "channel", "group_size": "null"}
    return f"{{{name}: {{{', '.join(f'{field}: {value}' for field, value in {**fields, **groups}.items())}}}}}"


def others(sizes: list[int]) -> str:
    """What else than the first of some sizes would do."""
    return f" (or {', '.join(map(str, sizes[1:]))})" if len(sizes) > 1 else ""


def presets() -> list[str]:
    """The names compressed-tensors knows."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    return sorted(PRESET_SCHEMES)


def read_scheme(spec: Spec, fits: Callable[[str], bool] = lambda name: True) -> QuantizationScheme:
    """The scheme of ``NAME`` or ``{NAME: fields}``: a preset, in whose arguments of the weights these fields differ. Where
    there is none of this name, those that fit are told."""
    from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme

    ((name, fields),) = {spec: {}}.items() if isinstance(spec, str) else spec.items()
    if name not in presets():
        raise ValueError(f"no scheme {name!r} in compressed-tensors; choose one of {', '.join(filter(fits, presets()))}")
    scheme = preset_name_to_scheme(name, [])
    if fields and scheme.weights is None:
        raise ValueError(f"{name} leaves weights as they are, so it has no fields; leave {', '.join(map(str, fields))} out")
    if odd := [field for field in fields if field not in FIELDS]:
        raise ValueError(f"{name}.{odd[0]}: no such field; choose one of {', '.join(FIELDS)}")
    if fields:
        try:
            scheme.weights = validate(QuantizationArgs, {**scheme.weights.model_dump(), **fields}, name)
        except ValueError as error:
            raise ValueError(f"{error}; {GROUPS}" if fields.keys() & {"strategy", "group_size"} else str(error)) from None
    return scheme


def integers(bits: int, group_size: int | None, symmetric: bool) -> QuantizationScheme:
    """Weights as integers, a scale per ``group_size`` columns of a row (None: per row); inputs as they are."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    groups = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, dynamic=False, **groups)
    return QuantizationScheme(targets=[], weights=weights)


def grid_of(weights: QuantizationArgs) -> Grid:
    """The values that arguments allow a weight; ValueError says what of them no grid has."""
    if weights.strategy not in ("group", "channel", "tensor"):
        raise ValueError(f"its weights have a scale per {weights.strategy}, not per group, channel or tensor")
    if weights.dynamic:
        raise ValueError("the scales of its weights are not fixed")
    if weights.num_bits not in ((8,) if weights.type == "float" else range(2, 9)):
        raise ValueError(f"its weights are {weights.num_bits}-bit {'floats' if weights.type == 'float' else 'integers'}")
    if weights.type == "float" and not weights.symmetric:
        raise ValueError("its weights are floats with a zero point")
    if weights.scale_dtype is not None:
        raise ValueError(f"its scales are rounded to {weights.scale_dtype}")
    return Grid(weights.num_bits, weights.group_size or None, weights.symmetric, weights.type, weights.strategy == "tensor")


def require_measurable(scheme: QuantizationScheme) -> None:
    """Raise ValueError where a scheme fixes scales of activations that nobody measures: of outputs, and of inputs unless they
    have one in all, and no zero point."""
    for what, activations in (("inputs", scheme.input_activations), ("outputs", scheme.output_activations)):
        if activations is None or activations.dynamic is True:
            continue
        one = activations.dynamic is False and activations.strategy == "tensor" and activations.symmetric
        if what == "outputs" or not one:
            raise ValueError(f"the scales of its {what} are fixed per {activations.strategy}")


def fixed_scale(args: QuantizationArgs, peak: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale [1] of activations that get as large as ``peak``, in the dtype it is stored in, where it is never zero."""
    import torch
    from compressed_tensors.quantization.utils import calculate_qparams

    ends, limits = peak.float().view(1), torch.finfo(dtype)
    return calculate_qparams(-ends, ends, args)[0].clamp(min=limits.tiny * limits.eps).to(dtype)


def format_of(scheme: QuantizationScheme) -> str:
    """The name of the library's format that holds the weights of a scheme."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format

    return scheme.format or infer_module_format(torch.nn.Linear, scheme).value


def compressor_of(scheme: QuantizationScheme) -> Any:
    """The library's own reader and writer of what a scheme is stored as."""
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(format_of(scheme))


def packed(scheme: QuantizationScheme) -> bool:
    """Whether codes lie side by side in words; else each has a byte of its own, however few its bits."""
    return format_of(scheme) == PACKED


def unpacked_at_once(scheme: QuantizationScheme) -> bool:
    """Whether transformers 5.23 reads a scheme only while it dequantizes a checkpoint at once: it has no place for packed zero
    points in a model kept packed."""
    return scheme.weights is not None and not scheme.weights.symmetric and packed(scheme)


def require_readable(schemes: Iterable[QuantizationScheme]) -> None:
    """Raise ValueError where compressed-tensors writes what transformers does not read back. What it dequantizes at once, it
    does by one scheme for all."""
    different: list[QuantizationScheme] = []
    for scheme in schemes:
        if scheme.weights is not None and scheme not in different:
            different.append(scheme)
    if len(different) > 1 and any(map(unpacked_at_once, different)):
        raise ValueError(ONE_ASYMMETRIC)


def config_groups(schemes: Mapping[str, QuantizationScheme]) -> dict[str, QuantizationScheme]:
    """Modules by scheme, as a config says it. ``schemes`` are by module name. The scheme of most modules is that of every
    Linear, and comes last; the others target their modules by the last part of their names where it tells them apart, else
    by name."""
    groups: list[tuple[QuantizationScheme, list[str]]] = []
    for name, scheme in schemes.items():
        members = next((members for known, members in groups if known == scheme), None)
        if members is None:
            groups.append((scheme, [name]))
        else:
            members.append(name)
    *fewer, most = sorted(groups, key=lambda group: len(group[1]))
    targets = [_targets(members, schemes.keys() - set(members)) for _, members in fewer]
    return {
        f"group_{number}": scheme.model_copy(update={"targets": target})
        for number, ((scheme, _), target) in enumerate(zip([*fewer, most], [*targets, ["Linear"]], strict=True))
    }


def _targets(members: Iterable[str], others: Collection[str]) -> list[str]:
    """Fewest targets that match ``members`` and none of ``others``: names alike in every block become one pattern."""
    taken = {name.rpartition(".")[2] for name in others}
    targets = (name if (leaf := name.rpartition(".")[2]) in taken else rf"re:.*\.{leaf}$" for name in members)
    return list(dict.fromkeys(targets))


def stored_schemes(quantization: Mapping[str, Any] | None, model: nn.Module) -> dict[str, QuantizationScheme]:
    """The scheme of every quantized module of a model by name, read from its config the way its readers do."""
    if not quantization:
        return {}
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_named_modules, match_targets

    config = QuantizationConfig.model_validate(quantization)
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    return {
        name: schemes[match_targets(name, module, schemes)[0]]
        for name, module in match_named_modules(model, schemes, config.ignore)
    }
