"""What plain transformers makes of a model directory: a program in a process of its own, which knows nothing of ours.

It answers one line of JSON with another, for as long as it is asked. A question names the directory and the file of masks,
whose bits are counted on the weights as they were loaded, and says how many bytes follow: safetensors with ``tokens`` and the
``logits`` that are expected of the first row of them. No file is needed for it that a killed process would leave behind.
``tasks/models/files/gate.py`` asks, and judges.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open

IDLE = 60  # seconds after an answer, in which there may be another question
OURS = ("tasks", "flows", "cluster", "dashboards")


def look(model: Any, tokens_BT: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The logits [T, V] of the first row, and the mean next-token loss over all rows."""
    return summed_up((model(row_T[None], use_cache=False).logits for row_T in tokens_BT), tokens_BT)


@torch.inference_mode()
def summed_up(logits: Iterable[torch.Tensor], tokens_BT: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The same from the logits [1, T, V] of each row, which may be computed when they are asked for."""
    first, losses = None, []
    for logits_1TV, row_T in zip(logits, tokens_BT, strict=True):
        logits_TV = logits_1TV[0].float()
        first = logits_TV.clone() if first is None else first
        losses.append(torch.nn.functional.cross_entropy(logits_TV[:-1], row_T[1:]).item())
    assert first is not None
    return first, sum(losses) / len(losses)


def revived(model: Any, masks: str, transposed: list[str]) -> dict[str, int]:
    """How many weights that masks call dead are not zero, of every mask with such; -1 where there is no weight of its shape."""
    weights, found = {**dict(model.named_parameters()), **dict(model.named_buffers())}, {}
    with safe_open(masks, "pt") as file:
        for name, promise in json.loads(file.metadata()["masks"]).items():
            weight = weights.get(name)
            weight = weight.mT if weight is not None and name in transposed else weight
            if weight is None or list(weight.shape) != promise["shape"]:
                found[name] = -1
                continue
            packed = file.get_tensor(f"{name}:keep")
            keep = torch.stack([packed >> bit & 1 for bit in range(8)], 1).flatten()[: weight.numel()].view(weight.shape).bool()
            if alive := int((weight[~keep] != 0).sum()):
                found[name] = alive
    return found


def answer(asked: dict[str, Any], followed: bytes) -> dict[str, Any]:
    from safetensors.torch import load
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked["threads"])
    given = load(followed)
    model, told = AutoModelForCausalLM.from_pretrained(asked["directory"], dtype="auto", output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if told[problem]:
            return {"broken": f"{problem.replace('_', ' ')} {', '.join(sorted(map(str, told[problem]))[:3])}"}
    logits, loss = look(model.eval(), given["tokens"])
    if logits.shape != given["logits"].shape:
        return {"broken": f"its logits are {list(logits.shape)}, not {list(given['logits'].shape)}"}
    difference = float((logits.double() - given["logits"].double()).abs().max())
    found = revived(model, asked["masks"], asked["transposed"]) if asked["masks"] else {}
    return {"difference": difference, "loss": loss, "revived": found}


def main() -> None:
    import compressed_tensors.compressors  # noqa: F401  # before it is asked anything: who started it has other work meanwhile
    import transformers.generation  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401  # most of what any model imports
    from transformers import AutoModelForCausalLM, logging

    _ = AutoModelForCausalLM.from_pretrained
    logging.disable_progress_bar()
    while line := sys.stdin.buffer.readline():
        signal.alarm(0)
        asked = json.loads(line)
        followed = sys.stdin.buffer.read(asked["bytes"])
        try:
            said = answer(asked, followed)
        except Exception as error:  # whatever a broken model makes of the libraries
            said = {"broken": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        assert not any(name.partition(".")[0] in OURS for name in sys.modules)
        signal.alarm(IDLE)
        print(f"\n{json.dumps(said)}", flush=True)


if __name__ == "__main__":
    main()
