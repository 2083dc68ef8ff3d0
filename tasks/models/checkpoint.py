"""Model directories: which are taken in, how they are loaded and saved, and whether they keep their masks' promises.

A checkpoint is safetensors and a config of a model type that transformers itself implements: nothing that needs code
from elsewhere to load. Whatever else a source is, it is refused in one line before any work starts. Weights are saved
under the names of the model's own parameters, because masks are filed under those names.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.formats.mask import BrokenMask, Mask, Masks, load_masks, save_masks
from tasks.models.shards import EXTRAS, MASKS, TensorFiles, header

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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
    if not (directory / "config.json").exists():
        raise ValueError(f"no model in {directory}: it has no config.json")
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except ValueError as error:     # no JSON, or no text at all
        raise ValueError(f"{directory / 'config.json'}: malformed JSON ({error})") from None
    if not isinstance(config, dict):
        raise ValueError(f"{directory / 'config.json'}: a JSON object is needed, got {config!r:.60}")
    if "auto_map" in config:
        raise ValueError(f"{directory} brings its own code (auto_map), which is never run; choose a model type that "
                         "transformers implements")  # fmt: skip
    _validate_type(config.get("model_type"))
    _validate_transform(directory, config)
    if not any(directory.glob("*.safetensors")):
        pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in directory.glob(pattern)]
        found = f"only pickled ones ({pickles[0]}), which are never opened" if pickles else "none at all"
        raise ValueError(f"{directory} has no safetensors weights, {found}; choose a checkpoint with *.safetensors")


def _validate_type(model_type: str | None) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        choices = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        near = difflib.get_close_matches(str(model_type), choices) or ["llama", "gpt2", "opt", "qwen3", "mixtral"]
        raise ValueError(f"no causal language model of type {model_type!r}; choose one of {', '.join(near)} "
                         f"or another of transformers' {len(choices)}")  # fmt: skip


def _validate_transform(directory: Path, config: dict[str, Any]) -> None:
    from tasks.models.transform import FIELD, transform_of

    try:
        transform_of(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {FIELD}: {error}") from None


def load_model(directory: Path, dtype: Any = None, device: str = "cpu") -> PreTrainedModel:
    """The whole model in memory, in its own dtype unless told. Weights that are missing are an error, not random."""
    from transformers import AutoConfig
    from transformers.utils import logging

    from tasks.models.building import builder

    validate(Path(directory))
    logging.disable_progress_bar()      # stages tell their own progress
    model, found = builder(AutoConfig.from_pretrained(directory, trust_remote_code=False)).from_pretrained(
        directory, dtype=dtype or "auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if found[problem]:
            raise ValueError(f"{directory} does not fit its config: {problem} {sorted(map(str, found[problem]))[:3]}")
    return model.to(device).eval()


def skeleton(directory: Path) -> PreTrainedModel:
    """The model without memory, on the meta device, its experts multiplied one by one where they can be observed."""
    from transformers import AutoConfig

    from tasks.models.building import builder

    validate(directory)
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = config.dtype or _stored_dtype(directory)
    with torch.device("meta"):
        return builder(config).from_config(config, experts_implementation="eager").eval()


def _stored_dtype(directory: Path) -> torch.dtype | None:
    """That of the first floating-point weight, which is what ``from_pretrained`` takes where the config names none."""
    entries = (entry for file in sorted(set(TensorFiles(directory).files.values())) for entry in header(file)[0].values())
    return next((_DTYPES[entry["dtype"]] for entry in entries if entry["dtype"] in _DTYPES), None)


def module_named(directory: Path, model: PreTrainedModel, scratch: Path) -> TensorFiles:
    """The weights under the model's own parameter names.

    Hub checkpoints may name them differently (one matrix per expert, no prefix). transformers knows the conversion;
    such a model is loaded once as a whole and rewritten into ``scratch``.
    """
    needed = set(model.state_dict()) - set(model.all_tied_weights_keys)
    files = TensorFiles(directory)
    if not needed <= set(files):
        whole = load_model(directory)
        save_model(whole.state_dict(), whole.config, scratch / "converted")
        files = TensorFiles(scratch / "converted")
    if missing := sorted(needed - set(files)):
        raise ValueError(f"unsupported: {directory} does not store {missing[0]} ({len(missing)} names in all)")
    return files


def save_model(
    state: Mapping[str, torch.Tensor],
    config: PretrainedConfig,
    directory: Path,
    masks: Masks | None = None,
    tokenizer: Any = None,
) -> None:
    """Write a model directory from weights under the model's own names. Tied weights may be given once or twice."""
    from huggingface_hub import save_torch_state_dict
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    seen: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in state.items():
        seen.setdefault((tensor.data_ptr(), tensor.shape), name)
    save_torch_state_dict({name: state[name].contiguous() for name in seen.values()}, directory)
    config.architectures = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    if masks:
        save_masks(masks, directory / MASKS)


def load_extras(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a method left beside the weights, by parameter: a quantizer's ``scale`` and ``zero_point``."""
    from safetensors.torch import load_file

    path = Path(directory) / EXTRAS
    extras: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in (load_file(path) if path.exists() else {}).items():
        parameter, _, key = name.rpartition(":")
        extras.setdefault(parameter, {})[key] = value
    return extras


def check_masks(directory: Path) -> dict[str, Mask]:
    """Verify every promise of a directory's masks against its stored weights, tensor by tensor; return the masks."""
    from tasks.models.linears import find_linears
    from tasks.models.quantized import StoredWeights

    directory = Path(directory)
    masks = load_masks(directory / MASKS)
    if not masks:
        return masks
    weights = StoredWeights(directory)
    linears = find_linears(weights.skeleton)
    for name, mask in masks.items():
        if name not in linears or name not in weights:
            raise BrokenMask(name, f"{directory} has no such weight")
        matrix = linears[name].matrix(weights.read(name))
        if tuple(matrix.shape) != mask.shape:
            raise BrokenMask(name, f"its shape is {list(mask.shape)}, the weight's is {list(matrix.shape)}")
        if reason := mask.broken():
            raise BrokenMask(name, reason)
        if alive := int((matrix[~mask.keep] != 0).sum()):
            raise BrokenMask(name, f"{alive} dead weights are not zero")
    return masks


def prunable(directory: Path) -> int:
    """How many weights of a model masks could take."""
    from tasks.models.linears import find_linears
    from tasks.models.quantized import StoredWeights

    return sum(math.prod(linear.shape) for linear in find_linears(StoredWeights(Path(directory)).skeleton).values())


def require_subset(child: Masks, parent: Masks) -> None:
    """No mask bit may come back to life: what is dead in ``parent`` is dead in ``child``."""
    for name, mask in parent.items():
        if name not in child:
            raise BrokenMask(name, "the mask was lost")
        if child[name].shape != mask.shape:
            raise BrokenMask(name, f"its shape changed from {list(mask.shape)} to {list(child[name].shape)}")
        if revived := int((child[name].keep & ~mask.keep).sum()):
            raise BrokenMask(name, f"{revived} dead weights were revived")
