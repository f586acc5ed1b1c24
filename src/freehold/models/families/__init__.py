"""The registry of model families, one file each: an architecture's config from both formats, and its layers' parts."""

from freehold.models.families import bert, gemma3, llama, mixtral, olmoe, qwen2, qwen2moe, qwen3, qwen3moe
from freehold.models.family import Family

MODULES = (llama, mixtral, qwen2, qwen2moe, qwen3, qwen3moe, olmoe, gemma3, bert)
FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in MODULES)
