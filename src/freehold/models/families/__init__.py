"""The registry of model families, one file each: an architecture's config from both formats, and its layers' parts."""

from freehold.models.families import bert, gemma3, llama, qwen2, qwen3
from freehold.models.family import Family

FAMILIES: tuple[Family, ...] = tuple(m.FAMILY for m in (llama, qwen2, qwen3, gemma3, bert))
