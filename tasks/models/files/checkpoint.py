"""Model directories: which are taken in, how they are loaded, and how they are saved.

A checkpoint is safetensors and a config of a model type that transformers itself implements: nothing that needs code
from elsewhere to load. Whatever else a source is, it is refused in one line before any work starts. Weights are saved
under the names of the model's own parameters, because masks are filed under those names.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.formats.mask import Masks, save_masks
from tasks.models.build.surgery import surgeries_of
from tasks.models.files.alone import alone
from tasks.models.files.intake import check_config, check_weights
from tasks.models.files.layout import EXTRAS, MASKS
from tasks.models.files.shards import TensorFiles

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_DOWNLOAD = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def download(hub_id: str, revision: str) -> Path:
    """The files of a model on the Hugging Face hub at a revision, in the hub's local cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_DOWNLOAD))
    except (OSError, ValueError, RuntimeError) as error:  # the hub's and the network's own errors are all of these
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot fetch {hub_id} at {revision} from the hub: {first}") from error


def validate(directory: Path) -> None:
    """Raise ValueError, in one line, when a model directory is not one Winnow loads."""
    check_config(directory)
    check_weights(directory)


def load_model(directory: Path, dtype: Any = None, device: str = "cpu") -> PreTrainedModel:
    """The whole model in memory, in its own dtype unless told. Weights that are missing are an error, not random."""
    from transformers import AutoConfig
    from transformers.utils import logging

    from tasks.models.build.building import builder

    validate(Path(directory))
    logging.disable_progress_bar()  # stages tell their own progress
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with alone() if getattr(config, "quantization_config", None) else nullcontext():
        model, found = builder(config).from_pretrained(
            directory, dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    for problem in ("missing_keys", "mismatched_keys"):
        if found[problem]:
            raise ValueError(f"{directory} does not fit its config: {problem} {sorted(map(str, found[problem]))[:3]}")
    return model.to(device).eval()


def skeleton(directory: Path) -> PreTrainedModel:
    """The model in ``directory`` without memory, on the meta device."""
    from transformers import AutoConfig

    validate(directory)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = config.dtype or _stored_dtype(directory)
    try:
        return skeleton_of(config)
    except ValueError as error:
        if not surgeries_of(config):
            raise
        raise ValueError(f"{directory}: {error}") from error  # a surgery knows no directory


def skeleton_of(config: PretrainedConfig) -> PreTrainedModel:
    """The model of a config without memory, in the dtypes that ``from_pretrained`` would load, its experts multiplied one by
    one where they can be observed."""
    from transformers.core_model_loading import build_glob_alternation

    from tasks.models.build.building import builder

    with torch.device("meta"):
        model = builder(config).from_config(config, experts_implementation="eager").eval()
    if plan := model._get_dtype_plan(config.dtype):  # what stays in float32, whatever the dtype of the model
        kept = build_glob_alternation(list(plan))[0]
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if kept.search(name):
                tensor.data = tensor.data.float()
    return model


def _stored_dtype(directory: Path) -> torch.dtype | None:
    """That of the first floating-point weight, which is what ``from_pretrained`` takes where the config names none."""
    files = TensorFiles(directory)
    return next((dtype for name in files if (dtype := files.dtype(name))), None)


def save_model(
    state: Mapping[str, torch.Tensor],
    config: PretrainedConfig,
    directory: Path,
    masks: Masks | None = None,
    tokenizer: Any = None,
) -> None:
    """Write a model directory from weights under the model's own names. Tied weights may be given once or twice."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(state, directory)
    save_config(config, directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if masks:
        save_masks(masks, directory / MASKS)


def save_config(config: PretrainedConfig, directory: Path) -> None:
    """``config.json``, with the class that loads it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config.architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(directory)


def save_weights(state: Mapping[str, torch.Tensor], directory: Path) -> None:
    """The weight files of a model directory; a tensor that is given under two names is written under the first."""
    from huggingface_hub import save_torch_state_dict

    seen: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        seen.setdefault((tensor.data_ptr(), tensor.shape), name)
    save_torch_state_dict({name: state[name].contiguous() for name in seen.values()}, directory)


def load_extras(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a method left beside the weights, by parameter: a quantizer's ``scale`` and ``zero_point``."""
    from safetensors.torch import load_file

    path = Path(directory) / EXTRAS
    extras: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in (load_file(path) if path.exists() else {}).items():
        parameter, _, key = name.rpartition(":")
        extras.setdefault(parameter, {})[key] = value
    return extras
