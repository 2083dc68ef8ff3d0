"""Quantized checkpoints, written through compressed-tensors, so that they load without Winnow.

The walker leaves a dequantized model and, beside it, the scales of every matrix. Here the two become a checkpoint of
integers or small floats, in the formats that compressed-tensors infers from the schemes. Every export is read back through
transformers and must be the same model (``tasks/models/files/gate.py``), its inputs quantized where a scheme says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.models.files.alone import alone
from tasks.models.files.checkpoint import load_model, save_weights, skeleton
from tasks.models.files.gate import Seen, require_readable_elsewhere, windows
from tasks.models.files.kv_cache import KVCache, stored_scales
from tasks.models.files.layout import MASKS, copy_companions
from tasks.models.files.packable import require_packable
from tasks.models.files.schemes import config_groups, format_of, require_readable, stored_schemes, unpacked_at_once
from tasks.models.files.shards import TensorFiles
from tasks.models.find.linears import find_linears

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from transformers import PreTrainedModel

    from tasks.models.find.linears import Linear

Extras = Mapping[str, Mapping[str, torch.Tensor]]
Schemes = Mapping[str, "QuantizationScheme"]


def export_compressed(
    directory: Path,
    extras: Extras,
    scheme_of: Callable[[Linear], QuantizationScheme],
    output: Path,
    data: Path | None = None,
    elsewhere: bool = False,
    kv_cache: KVCache | None = None,
) -> dict[str, float]:
    """Write the dequantized model in ``directory`` as codes on their scales; returns what the read-back found: on held-out
    text of ``data``, and by a process that knows nothing of ours where ``elsewhere`` is set.

    ``extras`` gives per parameter a "scale" and, on an asymmetric grid, a "zero_point", and per module what else its scheme
    has a place for, as ``load_extras`` reads them. A linear whose scheme has no weights stays as it is.
    """
    directory, output = Path(directory), Path(output)
    schemes = _schemes(directory, extras, scheme_of)
    model = load_model(directory)
    dtype = model.dtype
    cache = kv_cache.fit(model) if kv_cache else None
    with inputs_quantized(model, schemes, extras), cache.applied(model) if cache else nullcontext():
        seen = Seen.of(model, windows(data, model))
    untouched = _attach(model, {**extras, **(cache.scales if cache else {})}, schemes, cache and cache.args)
    _write(model, dtype, untouched, schemes, directory, output)
    if (directory / MASKS).exists():
        (output / MASKS).parent.mkdir(exist_ok=True)
        shutil.copyfile(directory / MASKS, output / MASKS)
    return {"logits_difference": require_readable_elsewhere(output, seen) if elsewhere else _read_back(seen, output)}


@contextmanager
def inputs_quantized(model: torch.nn.Module, schemes: Schemes, extras: Extras | None = None) -> Iterator[None]:
    """The model as a runtime of these schemes computes it: what flows into a linear is rounded first, by scales of its own or
    by the ``input_scale`` that ``extras`` fix."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def rounded(
        args: QuantizationArgs, fixed: torch.Tensor | None, module: torch.nn.Module, inputs: tuple[torch.Tensor]
    ) -> tuple[torch.Tensor]:
        scales = compute_dynamic_scales_and_zp(inputs[0], args, module) if fixed is None else (fixed, None)
        return (fake_quantize(inputs[0], *scales, args),)

    hooks = []
    for name, scheme in schemes.items():
        if scheme.input_activations is not None:
            module = name.removesuffix(".weight")
            fixed = (extras or {}).get(module, {}).get("input_scale")
            if fixed is None and scheme.input_activations.dynamic is not True:
                raise ValueError(f"{module} has no input_scale, and its scheme fixes one")
            hook = partial(rounded, scheme.input_activations, fixed)
            hooks.append(model.get_submodule(module).register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _schemes(
    directory: Path, extras: Extras, scheme_of: Callable[[Linear], QuantizationScheme]
) -> dict[str, QuantizationScheme]:
    """Those of the parameters that become codes; ValueError where the format has no place for them."""
    model = skeleton(directory)
    linears = find_linears(model)
    schemes = {name: scheme for name, linear in linears.items() if (scheme := scheme_of(linear)).weights is not None}
    require_packable(model, schemes)
    try:
        require_readable(schemes.values())
    except ValueError as error:
        raise ValueError(f"unsupported: {error}") from None
    if odd := sorted(schemes.keys() ^ {name for name, given in extras.items() if "scale" in given}):
        raise ValueError(f"a scale is needed for every linear and only those; {odd[0]} differs ({len(odd)} in all)")
    return schemes


def _attach(model: torch.nn.Module, extras: Extras, schemes: Schemes, cache: QuantizationArgs | None) -> list[str]:
    """Hang the schemes and their scales on the model's linears, the way compressed-tensors expects them; the names of those
    that are left as they are."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config

    linears = {name.removesuffix(".weight"): scheme for name, scheme in schemes.items()}
    ignored = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name not in linears]
    config = QuantizationConfig(
        config_groups=config_groups(linears),
        ignore=ignored,
        quantization_status=QuantizationStatus.FROZEN,
        kv_cache_scheme=cache,
    )
    apply_quantization_config(model, config, show_progress=False)
    for owner, given in extras.items():
        stem = f"{owner}_" if owner in schemes else f"{owner}."
        module, _, beside = stem.rpartition(".")
        for key, value in given.items():
            place = getattr(model.get_submodule(module), beside + key, None)
            if place is None:
                raise ValueError(f"no scheme has a place for {key} of {owner}")
            place.data.copy_(value.view_as(place))
    return ignored


def _write(
    model: PreTrainedModel, dtype: torch.dtype, untouched: list[str], schemes: Schemes, directory: Path, output: Path
) -> None:
    """Codes and scales (in ``dtype``) as compressed-tensors stores them, all else as it lies in ``directory``."""
    from compressed_tensors.compressors import ModelCompressor, compress_module

    compressor = ModelCompressor.from_pretrained_model(model)
    # It leaves out what is no module of a packed one's very class: a plain head beside layers of a class of their own, or a
    # layer of such a class beside plain ones. Readers match subclasses too, and would look for packed weights there.
    files, tied, known = TensorFiles(directory), model.all_tied_weights_keys, model.state_dict().keys()
    unknown = [name.removesuffix(".weight") for name in files if name.endswith(".weight") and name not in known]
    scheme = compressor.quantization_config
    scheme.ignore = list(dict.fromkeys([*scheme.ignore, *untouched, *unknown]))
    # Readers take a module's first target, so that of every Linear comes last.
    groups = sorted(scheme.config_groups.values(), key=lambda group: group.targets == ["Linear"])
    scheme.config_groups = {f"group_{number}": group for number, group in enumerate(groups)}
    with alone():
        for name in schemes:
            # Codes are recovered in float32: dividing a bfloat16 weight by its bfloat16 scale may round to a neighbour. One
            # matrix at a time, as the whole model in float32 is the most that a quantization would hold.
            compress_module(model.get_submodule(name.removesuffix(".weight")).float())
        compressor.compress_model(model, skip_compressed=True)
    state = {name: value for name, value in model.state_dict().items() if name not in tied}
    made = {name: value for name, value in state.items() if name in schemes or name not in files}
    made = {name: value.to(dtype) if value.dtype == torch.float32 else value for name, value in made.items()}
    # Packed zero points of a scale per row are a slice of a larger storage, which no file takes.
    made = {name: value.clone() if name.endswith("_zero_point") else value for name, value in made.items()}
    output.mkdir(parents=True, exist_ok=True)
    save_weights(made | files.read(name for name in files if name not in schemes), output)
    copy_companions(directory, output)
    compressor.update_config(str(output))
    if any(map(unpacked_at_once, schemes.values())):
        _dequantized_at_once(output / "config.json")


def _dequantized_at_once(path: Path) -> None:
    """Ask readers for it in the config."""
    config = json.loads(path.read_text())
    config["quantization_config"]["dequantize"] = True
    path.write_text(json.dumps(config, indent=2, sort_keys=True))


def _read_back(seen: Seen, output: Path) -> float:
    """The largest difference of a logit after reading; ValueError where it is more than rounding."""
    again = Seen.of(load_model(output), seen.tokens_BT)
    difference = float((again.logits_TV.double() - seen.logits_TV.double()).abs().max())
    seen.require_like(output, difference, again.loss)
    return difference


class StoredWeights:
    """The weights of a model directory as a loaded model would have them, one at a time, quantized or not."""

    def __init__(self, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self.skeleton = skeleton(directory)
        quantization = json.loads((directory / "config.json").read_text()).get("quantization_config")
        self.schemes = stored_schemes(quantization, self.skeleton)
        self.cache_scales = stored_scales(quantization, self.skeleton)  # of keys and values, which are no weights

    @cached_property
    def _parts(self) -> dict[str, dict[str, str]]:
        """What each weight is stored as: the tensors' own names in the file by their last parts, by the weight's name."""
        parts: dict[str, dict[str, str]] = {}
        for name in self.files:
            module, dot, leaf = name.rpartition(".")
            scheme = self.schemes.get(module)
            beside = scheme is not None and leaf in (*_compressor(scheme).compression_param_names(scheme), "input_scale")
            parts.setdefault(f"{module}.weight" if beside else f"{module}{dot}{leaf}", {})[leaf] = name
        return parts

    def names(self) -> set[str]:
        """What is stored, by the names it would have if nothing were quantized."""
        return set(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def read(self, name: str) -> torch.Tensor:
        scheme = self.schemes.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        stored = self.files.read(self._parts[name].values())
        if scheme is None:
            return stored[name]
        local = {leaf: stored[other] for leaf, other in self._parts[name].items()}
        return _compressor(scheme).decompress(local, scheme)["weight"]


def _compressor(scheme: QuantizationScheme) -> Any:
    """The library's own reader of what a scheme is stored as."""
    from compressed_tensors.compressors import BaseCompressor

    return BaseCompressor.get_value_from_registry(format_of(scheme))
