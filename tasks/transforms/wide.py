"""Sparse Wide: every hidden width times k = sqrt(1 / (1 - s)), by the config alone.

The model stays one that transformers builds. Heads are as many as before, so the hidden width is rounded to what they
divide. The FFN keeps its ratio to it, rounded up to a multiple of 8, which N:M patterns and matrix units want. Attention
and LM head become dearer with the width and stay dense: the matrices pay for them with a sparsity above the nominal one,
the more so the smaller the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from tasks.models.build.transform import Transform, enlarged

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FFN = ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size")


class Wide(Transform):
    paper: ClassVar[str] = "Sparse-IFT (arXiv 2303.11525), Sparse Wide"

    def resize(self, config: PretrainedConfig) -> PretrainedConfig:
        heads, hidden = config.num_attention_heads, config.hidden_size
        step = 2 * heads if hasattr(config, "rope_parameters") else heads  # rotary embeddings turn pairs of features
        wide = step * round(hidden * (1 - self.sparsity) ** -0.5 / step)
        if self.sparsity == 0 or wide <= hidden:
            return enlarged(config, {})
        widths = {name: size for name in FFN if isinstance(size := getattr(config, name, None), int)}
        sizes = {name: 8 * -(-size * wide // (8 * hidden)) for name, size in widths.items()} | {"hidden_size": wide}
        if getattr(config, "word_embed_proj_dim", None) == hidden:
            sizes["word_embed_proj_dim"] = wide
        if own := getattr(config, "head_dim", None):
            sizes["head_dim"] = wide // heads if own * heads == hidden else 2 * round(own * wide / hidden / 2)
        return enlarged(config, sizes)
