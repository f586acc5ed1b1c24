"""The tokens that a file says its model was made for and those that its windows hold, as the engine reads it.

YaRN stretches the original positions by its factor; Kimi Linear states its length under a key of its own.
Path: file_anatomy.from_file -> gguf_context, config_context, config_window
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.advisor.size_keys import SizeKeys

# Windows of a config.json without the key, as its class in transformers has it.
_UNSTATED_WINDOWS = dict.fromkeys(
    ("mistral", "ministral", "dots1", "gemma2", "gemma3_text", "cohere2", "exaone4", "olmo3"), 4096
) | {"gpt_oss": 128, "gemma3n_text": 512, "gemma4_text": 512}


def gguf_context(meta: SizeKeys) -> int:
    """Return the tokens by the keys of a GGUF; 0: not stated."""
    stated = meta.number("context_length")
    if meta.get("rope.scaling.type") != "yarn":
        return stated
    return _stretched(
        stated, meta.number("rope.scaling.original_context_length"), meta.get("rope.scaling.factor")
    )


def config_context(keys: SizeKeys) -> int:
    """Return the tokens by the keys of a config.json, in either dialect of its rope; 0: not stated."""
    stated = keys.number("max_position_embeddings", "model_max_length")
    rope = keys.get("rope_parameters") or keys.get("rope_scaling")
    if not isinstance(rope, Mapping) or "yarn" not in (rope.get("rope_type"), rope.get("type")):
        return stated
    original = SizeKeys(rope, "").number("original_max_position_embeddings")
    return _stretched(stated, original, rope.get("factor"))


def config_window(keys: SizeKeys) -> int:
    """Return the window that a config.json states, or that its class takes where it states none; 0: none."""
    if "sliding_window" in keys:
        return keys.number("sliding_window")
    return keys.number("attention_chunk_size") or _UNSTATED_WINDOWS.get(str(keys.get("model_type")), 0)


def _stretched(context: int, original: int, factor: object) -> int:
    if not isinstance(factor, int | float) or not 1 <= factor <= 1e6:
        return context
    return max(context, int((original or context) * factor))
