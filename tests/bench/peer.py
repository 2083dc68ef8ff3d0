"""llm-compressor's side of the comparison; runs in its own environment (``make bench-peers``) and imports nothing of ours.

python peer.py MODEL TOKENS.npy OUTPUT (wanda|sparsegpt) (unstructured|2:4) BATCH      prints seconds and MiB, last line
python peer.py MODEL TOKENS.npy OUTPUT (gptq|awq) GROUP BATCH                          the same; INT4 in groups of GROUP
"""

import sys
import time
from pathlib import Path


def main(model: str, tokens: str, output: str, method: str, how: str, batch: str) -> None:
    import numpy as np
    from datasets import Dataset
    from llmcompressor import oneshot
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from transformers.models.llama import modeling_llama  # noqa: F401  imported before the clock starts, as ours is

    base = peak_mebibytes()
    sequences = np.load(tokens)
    rows = {"input_ids": sequences.tolist(), "attention_mask": np.ones_like(sequences).tolist()}
    recipe = quantizing(method, int(how)) if method in ("gptq", "awq") else pruning(method, how)
    words = Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>"))  # asked for, and not used on tokens
    processor = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    begun = time.perf_counter()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    oneshot(
        model=loaded,
        processor=processor,
        dataset=Dataset.from_dict(rows),
        recipe=recipe,
        max_seq_length=sequences.shape[1],
        num_calibration_samples=len(sequences),
        shuffle_calibration_samples=False,
        batch_size=int(batch),
    )
    loaded.save_pretrained(output)
    print(time.perf_counter() - begun, base, peak_mebibytes(), flush=True)


def pruning(method: str, pattern: str) -> list:
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    fields = {"sparsity": 0.5, "mask_structure": "0:0" if pattern == "unstructured" else pattern, "ignore": ["re:.*lm_head"]}
    return [{"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method](targets=["Linear"], **fields)]


def quantizing(method: str, group: int) -> list:
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():  # its AWQ pins memory all the same, which torch refuses
        IntermediatesCache.pin_memory = lambda self, *which: None
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=group, symmetric=True)
    fields = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": ["re:.*lm_head"]}
    return [GPTQModifier(**fields)] if method == "gptq" else [AWQModifier(), QuantizationModifier(**fields)]


def peak_mebibytes() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(*sys.argv[1:7])
