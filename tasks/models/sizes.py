"""Checks of an architecture's sizes: each by itself, and all of them together.

transformers reports some wrong ones in its own terms, some by a traceback when the model is built, and some only when a
batch runs through it. Here each is a line that names the fields and their values, before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.models.files import known

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "ffn_dim",
    "n_inner",
    "word_embed_proj_dim",
    "moe_intermediate_size",
    "num_local_experts",
    "num_experts_per_tok",
)
LARGEST, DEEPEST = 1 << 24, 1 << 12  # beyond any model there is, and still quick to lay out without memory


def check_sizes(model_type: str, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError where ``overrides`` of a type's config give no model."""
    aliases, defaults = known.aliases(model_type), known.config_defaults(model_type)
    meanings = {own: meaning for meaning, own in aliases.items()}
    for name, value in overrides.items():
        _check_one(name, meanings.get(name, name), value, defaults.get(name))

    def broken(given: Mapping[str, Any]) -> dict[str, str]:
        stated = {**defaults, **{aliases.get(name, name): value for name, value in given.items()}}
        return _disagreements({meanings.get(name, name): (name, value) for name, value in stated.items()})

    excused = broken({})  # what a type's own defaults do not keep is no rule for it
    if wrong := {rule: message for rule, message in broken(overrides).items() if rule not in excused}:
        raise ValueError(next(iter(wrong.values())))


def _check_one(name: str, meaning: str, value: Any, default: Any) -> None:
    size = name in SIZES or meaning in SIZES
    if size and isinstance(value, bool):
        raise ValueError(f"{name} {value}: should be a number")
    told = size or isinstance(default, int)  # else what it may be is not known
    if not told or not isinstance(value, int) or name.endswith(("_id", "_idx")):  # or a token's number
        return
    least = min(1 if size else 0, default) if isinstance(default, int) else int(size)
    if value < least:
        raise ValueError(f"{name} {value}: should be {least} or more")
    most = DEEPEST if meaning == "num_hidden_layers" else LARGEST
    if size and value > most:
        raise ValueError(f"{name} {value}: should be {most} or less")


def _disagreements(fields: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """What is wrong with sizes taken together, by rule. ``fields`` are (name, value) by what they mean."""

    def size(meaning: str) -> int:
        value = fields.get(meaning, ("", None))[1]
        return value if isinstance(value, int) else 0

    def say(meaning: str) -> str:
        return f"{fields[meaning][0]} {fields[meaning][1]}"

    wrong, heads, latent = {}, size("num_attention_heads"), size("kv_lora_rank")
    if heads and not latent and not size("head_dim") and size("hidden_size") % heads:
        wrong["heads"] = f"{say('hidden_size')} is no multiple of {say('num_attention_heads')}"
    if size("num_key_value_heads") and heads % size("num_key_value_heads"):
        wrong["groups"] = f"{say('num_attention_heads')} is no multiple of {say('num_key_value_heads')}"
    if size("head_dim") % 2 and "rope_parameters" in fields and not latent:
        wrong["rotary"] = f"{say('head_dim')}: should be even, since rotary positions turn features in pairs"
    for experts in ("num_experts", "num_local_experts", "n_routed_experts"):
        if 0 < size(experts) < size("num_experts_per_tok"):
            wrong["experts"] = f"{say('num_experts_per_tok')} is more than {say(experts)}"
    return wrong
