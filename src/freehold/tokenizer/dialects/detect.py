"""Which dialect a chat template speaks: detected by the marks in its source, never by a model's name.

Path: ChatTemplate.dialect -> dialect_of
"""

from __future__ import annotations

from freehold.tokenizer.dialects import deepseek, gemma, harmony, kimi, listed, marked, mistral, pythonic, xml
from freehold.tokenizer.dialects.contract import Dialect
from freehold.tokenizer.dialects.hermes import HERMES, OPEN
from freehold.tokenizer.dialects.llama import FUNCTION, FUNCTIONARY, LLAMA, LLAMA4, START, TAG

# In this order; all texts of a row must occur. A later row's marks may occur in an earlier row's templates.
_MARKS: tuple[tuple[Dialect, tuple[str, ...]], ...] = (
    (harmony.HARMONY, (harmony.CHANNEL, "functions.")),
    (marked.DSML, ("｜DSML｜", "function_calls>")),
    (marked.DSML_V4, ("｜DSML｜", "tool_calls>")),
    (deepseek.DEEPSEEK_V3, (deepseek.CALL, "```json")),
    (deepseek.DEEPSEEK_V31, (deepseek.CALL,)),
    (mistral.MISTRAL, (mistral.OPEN, mistral.ARGS)),
    (mistral.MISTRAL_V3, (mistral.OPEN,)),
    (listed.NEMOTRON, ("<TOOLCALL>",)),
    (pythonic.LFM2, (pythonic.OPEN,)),
    (pythonic.LFM2, ("List of tools: ",)),  # these write no calls into history
    (kimi.KIMI, (kimi.OPEN, kimi.ARGUMENTS)),
    (listed.COHERE, ("<|START_ACTION|>", "tool_name")),
    (listed.GRANITE, ("<|tool_call|>", "available_tools")),
    (listed.PHI4, ("<|/tool|>",)),
    (listed.TOOL_CALLS, ("<tool_calls>[",)),
    (gemma.GEMMA4, (gemma.OPEN,)),
    (marked.MINIMAX, ("<minimax:tool_call>", "<invoke name=")),
    (marked.SEED, ("<seed:tool_call>", "<function=")),
    (marked.HUNYUAN_OPEN, ("<tool_sep", "<arg_key", ":opensource")),
    (marked.HUNYUAN, ("<tool_sep", "<arg_key")),
    (marked.GLM_TIGHT, ("<tool_call>", "</arg_key><arg_value>")),
    (marked.GLM, ("<tool_call>", "<arg_key>")),
    (xml.XML, (xml.OPEN, xml.FUNCTION)),
    (HERMES, (OPEN, "arguments")),
    (LLAMA4, (START, "parameters")),
    (FUNCTIONARY, (FUNCTION,)),
    (LLAMA, (TAG,)),
    (LLAMA, ("ipython", "parameters")),
    (gemma.GEMMA3, ("<start_of_turn>",)),
)


def dialect_of(source: str) -> Dialect | None:
    """Return the dialect whose marks are in a template's source; None where no known one is."""
    return next((dialect for dialect, marks in _MARKS if all(mark in source for mark in marks)), None)
