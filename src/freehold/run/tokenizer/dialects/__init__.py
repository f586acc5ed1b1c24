"""Tool calls by family: how a model's text spells them, and how they are parsed out of it."""

from freehold.run.tokenizer.dialects.contract import Call, Dialect, ToolParser
from freehold.run.tokenizer.dialects.detect import dialect_of
from freehold.run.tokenizer.dialects.harmony import HarmonyParser, Thought

__all__ = ["Call", "Dialect", "HarmonyParser", "Thought", "ToolParser", "dialect_of"]
