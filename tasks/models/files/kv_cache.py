"""Keys and values cached in 8 bits: a scale each for every attention, from the largest that calibration text puts into it.

compressed-tensors has a place for them (``kv_cache_scheme``, ``k_scale``, ``v_scale``), and its reader in transformers rounds
what goes into the cache, so a model's quality is measured as it will be served. Runtimes that keep the cache in 8 bits take the
scales from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from tasks.models.files.schemes import fixed_scale, unpacked_at_once

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from torch import nn
    from transformers import PreTrainedModel

Kind = Literal["FP8", "INT8"]
_SIDES = ("k", "v")


@dataclass(frozen=True)
class KVCache:
    """The numbers that keys and values are rounded to, and the tokens [B, T] that set their scales."""

    kind: Kind
    calibration: Sequence[torch.Tensor]

    @property
    def args(self) -> QuantizationArgs:
        from compressed_tensors.quantization import QuantizationArgs

        number = {"FP8": "float", "INT8": "int"}[self.kind]
        return QuantizationArgs(num_bits=8, type=number, strategy="tensor", symmetric=True, dynamic=False)

    def fit(self, model: PreTrainedModel, run: Callable[[Iterable[torch.Tensor]], None]) -> FittedCache:
        """The scales of a model whose blocks ``run`` takes batches through."""
        largest: dict[str, dict[str, torch.Tensor]] = {name: {} for name in attentions(model)}

        def observe(name: str, side: str, module: nn.Module, value: torch.Tensor) -> None:
            found = value.detach().abs().max()
            largest[name][side] = torch.maximum(found, largest[name].get(side, found))

        hooks = {name: {side: partial(observe, name, side) for side in _SIDES} for name in largest}
        with _hooked(model, hooks), torch.inference_mode():
            run(self.calibration)
        return FittedCache(self.args, {name: self._scales(found, model.dtype) for name, found in largest.items()})

    def _scales(self, largest: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
        return {f"{side}_scale": fixed_scale(self.args, value, dtype) for side, value in largest.items()}


@dataclass(frozen=True)
class FittedCache:
    """Scales by attention module, ``k_scale`` and ``v_scale``, as a checkpoint has them."""

    args: QuantizationArgs
    scales: Mapping[str, Mapping[str, torch.Tensor]]

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[None]:
        """The model as its readers compute it: what goes into the cache is rounded first."""
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize

        def rounded(scale: torch.Tensor, module: nn.Module, value: torch.Tensor) -> torch.Tensor:
            return fake_quantize(value, scale, None, self.args)

        hooks = {
            name: {side: partial(rounded, scales[f"{side}_scale"]) for side in _SIDES} for name, scales in self.scales.items()
        }
        with _hooked(model, hooks):
            yield


def attentions(model: nn.Module) -> list[str]:
    """The modules that have a cache, as compressed-tensors tells them."""
    from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module

    return [name for name, module in model.named_modules() if is_cached_attention_module(module)]


def require_cached(model: PreTrainedModel, schemes: Iterable[QuantizationScheme]) -> None:
    """Raise ValueError where the library cannot round what a model caches whose weights have these schemes."""
    from compressed_tensors.utils.helpers import get_head_dim, get_num_attn_heads, get_num_kv_heads
    from transformers.integrations.heterogeneity.configuration_utils import AmbiguousGlobalPerLayerAttributeError

    try:
        for asked in (get_head_dim, get_num_attn_heads, get_num_kv_heads):
            asked(model.config.get_text_config(decoder=True))
        known = bool(attentions(model))
    except (ValueError, AmbiguousGlobalPerLayerAttributeError):  # a config that does not say how many, or one for each layer
        known = False
    if not known:
        raise ValueError(
            f"kv_cache: compressed-tensors does not round the cache of a {type(model).__name__}; leave kv_cache out"
        ) from None
    if any(map(unpacked_at_once, schemes)):
        raise ValueError(
            "kv_cache: transformers unpacks packed zero points at once, and rounds no cache then; choose symmetric weights"
        )


def stored_scales(quantization: Mapping[str, object] | None, model: nn.Module) -> set[str]:
    """The names of the scales that a checkpoint with this config has of its cache."""
    if not (quantization or {}).get("kv_cache_scheme"):
        return set()
    return {f"{name}.{side}_scale" for name in attentions(model) for side in _SIDES}


@contextmanager
def _hooked(model: PreTrainedModel, hooks: Mapping[str, Mapping[str, partial]]) -> Iterator[None]:
    """The model with hooks on what goes into its caches."""
    from compressed_tensors.modeling.kvcache import initialize_hooked_kv_cache, register_key_hook, register_value_hook

    with ExitStack() as stack:
        for name, sides in hooks.items():
            module = model.get_submodule(name)
            initialize_hooked_kv_cache(model, module)
            stack.enter_context(register_key_hook(module, sides["k"]))
            stack.enter_context(register_value_hook(module, sides["v"]))
        yield
