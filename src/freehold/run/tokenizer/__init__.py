"""Text to token ids and back, and chats to prompts: tokenizers, detokenizer, chat templates."""

from freehold.run.tokenizer.core import AddedToken, Detokenizer, Rendered, Tokenizer, TokenKind
from freehold.run.tokenizer.directory import tokenizer_from_dir
from freehold.run.tokenizer.template import (
    ChatTemplate,
    chat_template_from_dir,
    chat_template_from_gguf,
    templates_from_dir,
    templates_from_gguf,
)
from freehold.run.tokenizer.vocab import tokenizer_from_gguf, tokenizer_from_words

__all__ = [
    "AddedToken",
    "ChatTemplate",
    "Detokenizer",
    "Rendered",
    "TokenKind",
    "Tokenizer",
    "chat_template_from_dir",
    "chat_template_from_gguf",
    "templates_from_dir",
    "templates_from_gguf",
    "tokenizer_from_dir",
    "tokenizer_from_gguf",
    "tokenizer_from_words",
]
