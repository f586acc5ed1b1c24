"""Chat with a model that runs in this process: template, tokenizer, engine, detokenizer, stop strings.

Knows text and token ids; knows no weights, no scheduling and no protocol. `LLM` is the ChatModel that
`freehold.load` returns.
"""

from freehold.run.local.llm import LLM
from freehold.run.local.opening import load, open_model, open_served, open_shown

__all__ = ["LLM", "load", "open_model", "open_served", "open_shown"]
