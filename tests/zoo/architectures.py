"""Tiny configs of every architecture the tests build: the smallest sizes that still have everything the real ones have.

Widths are multiples of 16, so that 2:4 and the groups of a quantizer fit every matrix.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PretrainedConfig

VOCABULARY = 64
_PLAIN = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
_GQA = {**_PLAIN, "num_key_value_heads": 2}
_HEADS = {**_GQA, "head_dim": 8}
_ROUTED = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MLA = {
    **_PLAIN,
    "num_key_value_heads": 4,
    **_ROUTED,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
_GPT = {"n_embd": 32, "n_head": 4, "n_positions": 64}
_DELTA = {
    **_HEADS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_SLIDING = ["sliding_attention", "full_attention"]

# By name: the config's class and its sizes. A list of layer types is repeated over the depth.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GQA),
    "mistral": ("MistralConfig", {**_HEADS, "sliding_window": 8}),
    "opt": ("OPTConfig", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", _HEADS),
    "qwen3_5": ("Qwen3_5TextConfig", _DELTA),
    "gemma": ("GemmaConfig", _HEADS),
    "gemma2": ("Gemma2Config", {**_HEADS, "query_pre_attn_scalar": 8, "sliding_window": 8, "layer_types": _SLIDING}),
    "gemma3": ("Gemma3TextConfig", {**_HEADS, "sliding_window": 8, "layer_types": _SLIDING}),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **_HEADS,
            "sliding_window": 8,
            "layer_types": _SLIDING,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 320,
        },
    ),
    "gemma4_shared": (  # later layers read the keys and values of earlier ones
        "Gemma4TextConfig",
        {
            **_HEADS,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 320,
            "num_kv_shared_layers": 1,
        },
    ),
    "gemma3n": (  # hidden states are several streams, and a model within has buffers of its own
        "Gemma3nTextConfig",
        {
            **_HEADS,
            "sliding_window": 8,
            "layer_types": _SLIDING,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 320,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "altup_num_inputs": 4,
            "activation_sparsity_pattern": None,
        },
    ),
    "phi": ("PhiConfig", _PLAIN),
    "phi3": ("Phi3Config", {**_GQA, "pad_token_id": 0}),
    "gpt2": ("GPT2Config", _GPT),
    "openai-gpt": ("OpenAIGPTConfig", _GPT),
    "gptj": ("GPTJConfig", {**_GPT, "rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", _PLAIN),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", _PLAIN),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_head": 4}),
    "falcon": (
        "FalconConfig",
        {"hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48, "max_position_embeddings": 64},
    ),
    # norms over all heads or channels, and a matrix more in the attention
    "olmo2": ("Olmo2Config", _GQA),
    "olmoe": ("OlmoeConfig", {**_GQA, "num_experts_per_tok": 2, "num_experts": 4, "intermediate_size": 16}),
    "smollm3": ("SmolLM3Config", {**_GQA, "no_rope_layers": [1, 0], "pad_token_id": 0}),
    "granite": ("GraniteConfig", _GQA),
    "granitemoe": ("GraniteMoeConfig", {**_GQA, "num_experts_per_tok": 2, "num_local_experts": 4, "intermediate_size": 16}),
    "starcoder2": ("Starcoder2Config", {**_GQA, "sliding_window": 8}),
    "cohere": ("CohereConfig", _GQA),
    "nemotron": ("NemotronConfig", _HEADS),
    "lfm2": ("Lfm2Config", {**_GQA, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]}),
    "mixtral": ("MixtralConfig", {**_GQA, "num_experts_per_tok": 2, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_GQA, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_HEADS, "num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 24}),
    "qwen3_next": ("Qwen3NextConfig", {**_DELTA, **_ROUTED, "num_experts": 4, "shared_expert_intermediate_size": 16}),
    "deepseek_v2": ("DeepseekV2Config", {**_MLA, "n_group": 1, "topk_group": 1}),
    "deepseek_v3": ("DeepseekV3Config", {**_MLA, "n_group": 2, "topk_group": 1}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {
            **_GQA,
            "moe_intermediate_size": 16,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
        },
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            **_HEADS,
            **_ROUTED,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
        },
    ),
    "gpt_oss": ("GptOssConfig", {**_HEADS, "num_experts_per_tok": 2, "num_local_experts": 4, "layer_types": _SLIDING}),
    # blocks that return more than hidden states
    "bamba": (
        "BambaConfig",
        {**_GQA, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    ),
    "bitnet": ("BitNetConfig", _GQA),
    "doge": ("DogeConfig", _HEADS),
}
ARCHITECTURES = tuple(_CONFIGS)


def config(architecture: str, layers: int = 2, **overrides: Any) -> PretrainedConfig:
    """The config of an architecture; ``overrides`` are any fields of it."""
    name, sizes = _CONFIGS[architecture]
    depth = {"n_layer" if "n_embd" in sizes or architecture == "bloom" else "num_hidden_layers": layers}
    if "layer_types" in sizes:
        depth["layer_types"] = (sizes["layer_types"] * layers)[:layers]
    return getattr(transformers, name)(**{"vocab_size": VOCABULARY, **sizes, **depth, **overrides})
