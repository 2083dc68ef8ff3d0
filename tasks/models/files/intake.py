"""Which model directories are taken in. What is wrong with one is said in a line, before anything is computed or hashed.

Everything here is read from configs and from the first bytes of weight files, without torch or transformers: a plan asks
it of every checkpoint it names. That the model can be built and its weights fit is asked last (``names.fits``), since it
costs an import of both.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from tasks.models.build.surgery import surgeries_of
from tasks.models.files import known
from tasks.models.files.layout import INDEX, SINGLE

POINTER = b"version https://git-lfs"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json", "*.tiktoken")
DTYPES = ("float32", "bfloat16", "float16", "float64", "float", "half", "double")  # as torch names them
OTHER_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM", "MultipleChoice")
LONGEST_HEADER = 100 << 20  # safetensors' own bound
SHARD = re.compile(r".+-\d+-of-(\d+)\.safetensors")
_STATE_SPACE, _FUSED = "state-space layers", "experts in fused matrices that do not say their orientation"
_OWN, _SHARED = "matrices in layers of its own kind", "blocks that share or mix their parameters"
UNSUPPORTED = {  # model types whose blocks the walker does not understand, and why; a test builds each
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba", "recurrent_gemma", "rwkv", "zamba", "kimi_linear"), _STATE_SPACE),
    **dict.fromkeys(("llama4", "llama4_text", "jetmoe"), _FUSED),
    **dict.fromkeys(("deepseek_v4", "hy_v4", "inkling_text", "inkling2_text", "xlnet"), _OWN),
    **dict.fromkeys(("zamba2", "longcat_flash", "hrm_text", "xlm"), _SHARED),
}


def check_type(model_type: Any) -> None:
    """Refuse a model type that is no causal language model of transformers, or one whose blocks nothing here understands."""
    types = known.causal_models()
    if model_type not in types:
        near = difflib.get_close_matches(str(model_type), types) or ["llama", "gpt2", "opt", "qwen3", "gemma", "mixtral"]
        raise ValueError(
            f"no causal language model type {model_type!r}; choose one of {', '.join(near)} "
            f"or another of transformers' {len(types)}"
        )
    if reason := UNSUPPORTED.get(model_type):
        raise ValueError(
            f"unsupported: model type {model_type} has {reason}; choose a decoder of plain or expert layers "
            "such as llama, qwen3 or mixtral"
        )


def check_config(directory: Path) -> dict[str, Any]:
    """The content of a model's config.json, once it is of a kind that is taken in."""
    if not directory.is_dir():
        found = "a GGUF file, which holds weights quantized for llama.cpp" if directory.suffix == ".gguf" else "a file"
        what = f"{directory} is {found}" if directory.exists() else f"no model directory {directory}"
        raise ValueError(f"{what}; give a local directory, s3:// or a hub id with a revision")
    if (directory / "adapter_config.json").exists():
        raise ValueError(f"{directory} is an adapter and no whole model; merge it into its base model and give that")
    if not (directory / "config.json").exists():
        others = f"; {names[0]} is quantized for llama.cpp" if (names := _names(directory, "*.gguf")) else ""
        raise ValueError(f"no model in {directory}: it has no config.json{others}")
    config = read_json(directory / "config.json")
    if "auto_map" in config:
        raise ValueError(
            f"{directory} brings its own code (auto_map), which is never run; choose a model type that transformers implements"
        )
    try:
        check_type(config.get("model_type"))
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    if config.get("is_encoder_decoder"):
        raise ValueError(f"{directory} is an encoder-decoder; choose a model with a decoder alone")
    _check_head(directory, config)
    _check_dtype(directory, config)
    try:
        surgeries_of(config)
    except ValueError as error:
        raise ValueError(f"{directory / 'config.json'}: {error}") from None
    return config


def _check_dtype(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a dtype that torch has not, of the model or of a part of it that has a config of its own."""
    for part in (config, *(value for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))):
        for field in ("dtype", "torch_dtype"):
            if (given := part.get(field)) is not None and given not in DTYPES:
                raise ValueError(
                    f"{directory / 'config.json'}: {field} {given!r} is no dtype of weights; "
                    f"choose one of {', '.join(DTYPES[:3])}"
                )


def _check_head(directory: Path, config: dict[str, Any]) -> None:
    """Refuse a model that was saved without the head that foretells the next token."""
    (name, *_) = config.get("architectures") or [""]
    headless = name.endswith("Model") and not name.endswith(("LMHeadModel", "HeadsModel"))
    if headless or name.endswith(OTHER_HEADS):
        raise ValueError(
            f"{directory} is a {name}, which has no language modelling head; choose a "
            f"{known.causal_models()[config['model_type']]}"
        )


def check_unquantized(directory: Path) -> None:
    """Refuse weights that are quantized already: every stage computes with the values they were made from."""
    config = read_json(directory / "config.json")
    if method := config.get("quantization_config") or config.get("compression_config"):
        kind = method.get("quant_method", "some method") if isinstance(method, dict) else method
        raise ValueError(f"{directory} is quantized already ({kind}); choose the model it was made from")
    for name, entry in check_weights(directory).items():
        if entry["dtype"].startswith(("F8", "F6", "F4")):
            raise ValueError(f"{directory} is quantized already ({name}: {entry['dtype']}); choose the model it was made from")


def check_weights(directory: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a model by name, once every weight file is there, whole, and holds what the index says it does."""
    indexed, single = (directory / INDEX).exists(), (directory / SINGLE).exists()
    if indexed and single:
        raise ValueError(f"{directory} holds both {SINGLE} and {INDEX}, and loaders differ in which they take; remove one")
    if single:
        return read_header(directory / SINGLE)
    if not indexed:
        raise ValueError(f"{directory} has no safetensors weights, {_instead(directory)}; choose a checkpoint that has them")
    listed = read_json(directory / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
        raise ValueError(f"{directory / INDEX} has no weight_map from tensors to files")
    shards = {shard: _shard(directory, shard) for shard in sorted(set(listed.values()))}
    for name, shard in listed.items():
        if name not in shards[shard]:
            raise ValueError(f"{directory / shard} lacks {name}, which the index says it holds; fetch both again")
    tensors = {name: entry for entries in shards.values() for name, entry in entries.items()}
    if odd := sorted(tensors.keys() - listed.keys()):
        raise ValueError(f"{directory / INDEX} does not list {odd[0]}, which its files hold ({len(odd)} in all)")
    totals = {found[1] for shard in shards if (found := SHARD.fullmatch(shard))}
    for name in _names(directory, "*.safetensors"):
        if name not in shards and (found := SHARD.fullmatch(name)) and found[1] in totals:
            raise ValueError(f"{directory / INDEX} does not list {name}, which lies beside it; fetch the index again")
    return tensors


def _shard(directory: Path, name: str) -> dict[str, dict[str, Any]]:
    if "/" in name or not (directory / name).is_file():
        raise ValueError(f"{directory / INDEX} lists {name}, which is not there; fetch it again")
    return read_header(directory / name)


def _instead(directory: Path) -> str:
    for patterns, kind in (
        (("*.bin", "*.pt", "*.pth"), "pickled ones ({}), which are never opened"),
        (("*.gguf",), "ones quantized for llama.cpp ({})"),
        (("*.safetensors",), f"others ({{}}) than {SINGLE} or what {INDEX} lists"),
    ):
        if names := [name for pattern in patterns for name in _names(directory, pattern)]:
            return "only " + kind.format(names[0])
    return "none at all"


def _names(directory: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in directory.glob(pattern))


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file by name, once the file is one and as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        if (begin + file.read(len(POINTER) - 8)).startswith(POINTER):
            raise ValueError(f"{path} is a git-lfs pointer and not the file itself; run git lfs pull in its folder")
        length = int.from_bytes(begin, "little")
        if size < 8 or length > min(LONGEST_HEADER, size - 8):
            raise ValueError(f"{path} is no whole safetensors file ({size} bytes); fetch it again")
        file.seek(8)
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ValueError(f"{path} is no safetensors file: its header cannot be read; fetch it again") from None
    if size != end:
        kind = "truncated" if size < end else "longer than its header says"
        raise ValueError(f"{path} is {kind}: {size} bytes where {end} are needed; fetch it again")
    return entries


def read_json(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    if content.startswith(POINTER):
        raise ValueError(f"{path} is a git-lfs pointer and not the file itself; run git lfs pull in its folder")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: malformed JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds a {type(document).__name__} where fields by name are needed")
    return document


def check_tokenizer(directory: Path) -> None:
    """Refuse a directory that holds no tokenizer."""
    if not directory.is_dir():
        raise ValueError(f"no tokenizer directory {directory}; give a local directory, s3:// or a hub id with a revision")
    files = [directory / name for pattern in TOKENIZERS for name in _names(directory, pattern)]
    if not files:
        raise ValueError(f"no tokenizer in {directory}: it has none of {', '.join(TOKENIZERS)}")
    for file in files:
        with file.open("rb") as content:
            if content.read(len(POINTER)) == POINTER:
                raise ValueError(f"{file} is a git-lfs pointer and not the file itself; run git lfs pull in its folder")


def has_chat_template(directory: Path) -> bool:
    """Whether a tokenizer in a directory brings a chat template, wherever it keeps it."""
    config = directory / "tokenizer_config.json"
    return bool(_names(directory, "chat_template*")) or (config.exists() and '"chat_template"' in config.read_text())
