"""Models in llama.cpp's file format: their weights, dequantized by transformers, as a plain model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

MAGIC = b"GGUF"


def check_gguf(file: Path) -> None:
    """Raise ValueError where a file is none of that format."""
    if not file.is_file():
        raise ValueError(f"no GGUF file {file}; give the path of one")
    with file.open("rb") as content:
        if content.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{file} is no GGUF file: it does not begin with {MAGIC.decode()}")


def convert_gguf(file: Path, directory: Path) -> None:
    """The model and its tokenizer as a Hugging Face directory in bfloat16, which appears when it is whole. Its config keeps
    what the weights were dequantized from, a file and its types of numbers (``dequantized_from``). Raises ValueError where
    the file cannot be read, or has what would be left out."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tasks.models.files.checkpoint import save_model

    half = directory.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        tensors = GGUFReader(file).tensors
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # whatever the libraries make of a file they cannot read
        raise ValueError(f"{file} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if scaled := next((tensor.name for tensor in tensors if tensor.name.startswith("rope_")), None):
        raise ValueError(f"{file} scales its rotary positions ({scaled}), which transformers leaves out; take another format")
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    kinds = {tensor.tensor_type.name for tensor in tensors}
    config.dequantized_from = f"{file.name}: {', '.join(sorted(kinds))}"
    save_model(model.to(torch.bfloat16).state_dict(), config, half, tokenizer=tokenizer)  # tied weights stay one
    half.rename(directory)
