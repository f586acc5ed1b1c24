"""Tool calls by family: how a model's text spells them, and how they are parsed out of it.

Which dialect a chat template speaks is detected by the marks in its source, never by a model's name.
"""

from __future__ import annotations

from freehold.run.tokenizer.dialects import deepseek, gemma, harmony, json_calls, kimi, marked, pythonic
from freehold.run.tokenizer.dialects.contract import Call, Dialect, ToolParser
from freehold.run.tokenizer.dialects.harmony import HarmonyParser, Thought

__all__ = ["Call", "Dialect", "HarmonyParser", "Thought", "ToolParser", "dialect_of"]

# In this order; all texts of a row must occur. A later row's marks may occur in an earlier row's templates.
_MARKS: tuple[tuple[Dialect, tuple[str, ...]], ...] = (
    (harmony.HARMONY, (harmony.CHANNEL, "functions.")),
    (marked.DSML, ("｜DSML｜", "function_calls>")),
    (marked.DSML_V4, ("｜DSML｜", "tool_calls>")),
    (deepseek.DEEPSEEK_V3, (deepseek.CALL, "```json")),
    (deepseek.DEEPSEEK_V31, (deepseek.CALL,)),
    (json_calls.MISTRAL, (json_calls.MISTRAL_OPEN, json_calls.ARGS)),
    (json_calls.MISTRAL_V3, (json_calls.MISTRAL_OPEN,)),
    (json_calls.NEMOTRON, ("<TOOLCALL>",)),
    (pythonic.LFM2, (pythonic.OPEN,)),
    (pythonic.LFM2, ("List of tools: ",)),  # these write no calls into history
    (kimi.KIMI, (kimi.OPEN, kimi.ARGUMENTS)),
    (json_calls.COHERE, ("<|START_ACTION|>", "tool_name")),
    (json_calls.GRANITE, ("<|tool_call|>", "available_tools")),
    (json_calls.PHI4, ("<|/tool|>",)),
    (json_calls.TOOL_CALLS, ("<tool_calls>[",)),
    (gemma.GEMMA4, (gemma.OPEN,)),
    (marked.MINIMAX, ("<minimax:tool_call>", "<invoke name=")),
    (marked.SEED, ("<seed:tool_call>", "<function=")),
    (marked.HUNYUAN_OPEN, ("<tool_sep", "<arg_key", ":opensource")),
    (marked.HUNYUAN, ("<tool_sep", "<arg_key")),
    (marked.GLM_TIGHT, ("<tool_call>", "</arg_key><arg_value>")),
    (marked.GLM, ("<tool_call>", "<arg_key>")),
    (marked.XML, (marked.OPEN, marked.FUNCTION)),
    (json_calls.HERMES, (json_calls.OPEN, "arguments")),
    (json_calls.LLAMA4, (json_calls.START, "parameters")),
    (json_calls.FUNCTIONARY, (json_calls.FUNCTION,)),
    (json_calls.LLAMA, (json_calls.TAG,)),
    (json_calls.LLAMA, ("ipython", "parameters")),
    (gemma.GEMMA3, ("<start_of_turn>",)),
)


def dialect_of(source: str) -> Dialect | None:
    """Return the dialect whose marks are in a template's source; None where no known one is."""
    return next((dialect for dialect, marks in _MARKS if all(mark in source for mark in marks)), None)
