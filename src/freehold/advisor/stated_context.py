"""The tokens that a file says its model was made for, as the engine reads it.

YaRN stretches the original positions by its factor; Kimi Linear states its length under a key of its own.
Path: file_anatomy.from_file -> gguf_context, config_context
"""

from __future__ import annotations

from collections.abc import Mapping

from freehold.advisor.size_keys import SizeKeys


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


def _stretched(context: int, original: int, factor: object) -> int:
    if not isinstance(factor, int | float) or not 1 <= factor <= 1e6:
        return context
    return max(context, int((original or context) * factor))
