"""What lies where in a model directory, and what of it travels from stage to stage and into an export.

Of what lies beside the weights, every plain file travels (config, generation config, tokenizer, chat templates, processor,
licence) but weights in other formats, code, hidden files, and what is written anew. So a file that nobody here has heard of
is not lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# In folders of their own: who takes every *.safetensors of a model directory for weights must not find them.
MASKS = "masks/masks.safetensors"
EXTRAS = "extras/extras.safetensors"
NAMES = "names.json"  # what the tensors were called where the model came from
TEMPLATES = "additional_chat_templates"  # a folder: transformers keeps named ones there
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt", ".npz")
_WRITTEN_ANEW = ("record.json", "README.md")


def companions(directory: Path) -> Iterator[Path]:
    """The files that travel, sorted."""
    for file in sorted([*directory.iterdir(), *directory.glob(f"{TEMPLATES}/*")]):
        weights = file.suffix in _WEIGHTS or file.name.endswith(".index.json")
        left = weights or file.suffix == ".py" or file.name.startswith(".") or file.name in _WRITTEN_ANEW
        if file.is_file() and not left:
            yield file


def copy_companions(source: Path, output: Path, skip: Collection[str] = ()) -> None:
    """Copy what travels, but for the file names in ``skip``."""
    copy_files(source, output, *(str(file.relative_to(source)) for file in companions(source) if file.name not in skip))


def copy_files(source: Path, output: Path, *names: str) -> None:
    """Copy those that are there, by their paths in a model directory."""
    for name in names:
        if (source / name).exists():
            (output / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, output / name)


def tokenizer_files(directory: Path) -> set[str]:
    """Names of the files that make up a model's tokenizer, chat template included."""
    return {file.name for pattern in (*TOKENIZER, f"{TEMPLATES}/*") for file in directory.glob(pattern)}
