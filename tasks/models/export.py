"""Quantized checkpoints, written through compressed-tensors, so that they load without Winnow.

The walker leaves a dequantized model and, beside it, the scales of every matrix. The two become a checkpoint of integers or
small floats, in the formats that compressed-tensors infers from the schemes, and neither is ever whole in memory. Every
export is read back through transformers and must be the same model (``tasks/models/files/gate.py``), its inputs quantized
where a scheme says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tasks.models.files.checkpoint import load_model, skeleton
from tasks.models.files.gate import Seen, require_readable_elsewhere, windows
from tasks.models.files.kv_cache import KVCache
from tasks.models.files.layout import MASKS, copy_files
from tasks.models.files.packable import require_packable
from tasks.models.files.packing import Extras, Schemes, write_packed
from tasks.models.files.schemes import require_readable
from tasks.models.find.linears import find_linears
from tasks.models.stream.blocks import BlockStream

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    from tasks.models.find.linears import Linear
    from tasks.models.stream.activations import MemoryBudget


def export_compressed(
    directory: Path,
    extras: Extras,
    scheme_of: Callable[[Linear], QuantizationScheme],
    output: Path,
    data: Path | None = None,
    elsewhere: bool = False,
    kv_cache: KVCache | None = None,
    memory: MemoryBudget | None = None,
) -> dict[str, float]:
    """Write the dequantized model in ``directory`` as codes on their scales; returns what the read-back found: on held-out
    text of ``data``, and by a process that knows nothing of ours where ``elsewhere`` is set.

    ``extras`` gives per parameter a "scale" and, on an asymmetric grid, a "zero_point", and per module what else its scheme
    has a place for, as ``load_extras`` reads them. A linear whose scheme has no weights stays as it is. ``memory`` is what the
    hidden states may take that a ``kv_cache`` is fitted on.
    """
    directory, output = Path(directory), Path(output)
    schemes = _schemes(directory, extras, scheme_of)
    stream = BlockStream(directory)
    model = stream.model
    cache = kv_cache.fit(model, lambda batches: stream.through(batches, memory).hidden.clear()) if kv_cache else None
    with inputs_quantized(model, schemes, extras), cache.applied(model) if cache else nullcontext():
        rows_BT = windows(data, model)
        seen = Seen.summed_up(stream.logits(row_T[None] for row_T in rows_BT), rows_BT, next(model.parameters()).dtype)
    write_packed(directory, {**extras, **(cache.scales if cache else {})}, schemes, cache and cache.args, output)
    copy_files(directory, output, MASKS)
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

    with ExitStack() as hooks:
        for name, scheme in schemes.items():
            if scheme.input_activations is not None:
                module = name.removesuffix(".weight")
                fixed = (extras or {}).get(module, {}).get("input_scale")
                if fixed is None and scheme.input_activations.dynamic is not True:
                    raise ValueError(f"{module} has no input_scale, and its scheme fixes one")
                hook = partial(rounded, scheme.input_activations, fixed)
                hooks.enter_context(model.get_submodule(module).register_forward_pre_hook(hook))
        yield


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


def _read_back(seen: Seen, output: Path) -> float:
    """The largest difference of a logit after reading; ValueError where it is more than rounding."""
    again = Seen.of(load_model(output), seen.tokens_BT)
    difference = float((again.logits_TV.double() - seen.logits_TV.double()).abs().max())
    seen.require_like(output, difference, again.loss)
    return difference
