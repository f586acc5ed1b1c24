"""Sizes as a file's metadata states them: a number, a list of one a layer, or nothing.

Knows keys and what a size is; knows no architecture.
Path: file_anatomy.from_file -> SizeKeys
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freehold.errors import BadModelFile

MAX_LAYERS = 1024  # as many as families take


class SizeKeys:
    """Sizes out of metadata that may lack any of them; a value that is not a size is an error with its key."""

    def __init__(self, values: Mapping[str, Any], prefix: str) -> None:
        self._values, self._prefix = values, prefix

    def __contains__(self, key: str) -> bool:
        return self._prefix + key in self._values

    def get(self, key: str) -> Any:
        return self._values.get(self._prefix + key)

    def number(self, *keys: str) -> int:
        """Return the first of the keys that is there; 0 if none is."""
        return next((n for n in (largest(self.each(k)) for k in keys) if n), 0)

    def layers(self, key: str) -> int:
        """Return how many layers there are; no more than a list of them may take."""
        if (count := self.number(key)) > MAX_LAYERS:
            raise BadModelFile(f"{self._prefix}{key} is {count}; the limit is {MAX_LAYERS}")
        return count

    def each(self, key: str) -> list[int]:
        """Return the value of every layer, or the one of them all."""
        stored = self.get(key)
        values = stored.tolist() if hasattr(stored, "tolist") else stored
        values = values if isinstance(values, list) else [] if values is None else [values]
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 40:
                raise BadModelFile(f"{self._prefix}{key} is {str(value)[:40]!r}, which is not a size")
        return values


def largest(values: list[int]) -> int:
    """Return the greatest, 0 of none."""
    return max(values, default=0)


def head_dim_of(meta: SizeKeys) -> int:
    """Return the width of a key, by a GGUF's keys."""
    heads = largest(meta.each("attention.head_count"))
    return meta.number("attention.key_length") or (meta.number("embedding_length") // heads if heads else 0)


def config_head_dim(keys: SizeKeys) -> int:
    """Return the width of a key, by a config.json's keys."""
    heads = keys.number("num_attention_heads")
    return keys.number("head_dim") or (keys.number("hidden_size") // heads if heads else 0)


def query_width(meta: SizeKeys) -> int:
    """Return the width of a query head by a GGUF's keys; of latent attention, in the latents' space."""
    latent = meta.number("attention.kv_lora_rank")
    return latent + meta.number("rope.dimension_count") if latent else head_dim_of(meta)


def config_query_width(keys: SizeKeys) -> int:
    """Return the same by a config.json's keys."""
    latent = keys.number("kv_lora_rank")
    return latent + keys.number("qk_rope_head_dim") if latent else config_head_dim(keys)
