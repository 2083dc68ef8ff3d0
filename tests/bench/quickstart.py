"""What the training benches train: the model and the batches of the shipped quickstart recipe, on random tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.data.tokens import Sampler

RECIPE = Path(__file__).resolve().parents[2] / "flows" / "recipes" / "quickstart.yaml"


def recipe() -> dict[str, Any]:
    return yaml.safe_load(RECIPE.read_text())


def stage(name: str) -> dict[str, Any]:
    return next(stage[name] for stage in recipe()["stages"] if name in stage)


def vocabulary() -> int:
    return stage("prepare")["tokenizer"]["train"]


def model() -> PreTrainedModel:
    """Always the same weights, in float32, ready to train."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.models.source import Architecture

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Architecture(**recipe()["model"]["architecture"]).config(vocabulary())
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()


def sampler(directory: Path, batches: int) -> Sampler:
    """Data of this many different batches."""
    import numpy as np

    from tasks.data.tokens import Sampler, Tokens

    pretrain = stage("pretrain")
    count = batches * pretrain["batch"] * pretrain["length"]
    np.save(directory / "train-00000.npy", np.random.default_rng(0).integers(vocabulary(), size=count, dtype=np.uint16))
    return Sampler(Tokens(directory, "train"), pretrain["length"], pretrain["batch"], seed=0)
