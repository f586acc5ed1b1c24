"""Text to token ids and back, and chats to prompts: tokenizers, detokenizer, chat templates."""

from freehold.tokenizer.core import AddedToken, Detokenizer, Rendered, Tokenizer, TokenKind
from freehold.tokenizer.directory import tokenizer_from_dir
from freehold.tokenizer.template import (
    ChatTemplate,
    chat_template_from_dir,
    chat_template_from_gguf,
    templates_from_dir,
    templates_from_gguf,
)
from freehold.tokenizer.vocab import tokenizer_from_gguf

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
]
