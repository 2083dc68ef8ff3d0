"""Masked finetuning: train what lives, keep what is dead, optionally learning from the model before it was pruned."""

from __future__ import annotations

from typing import ClassVar

from tasks.train.distilling import DistillingRegime


class Masked(DistillingRegime):
    """Under the mask the model came with."""

    paper: ClassVar[str] = "knowledge distillation (arXiv 1503.02531) under a fixed mask"
