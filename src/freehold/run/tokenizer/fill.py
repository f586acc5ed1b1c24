"""Fill-in-the-middle prompts: the tokens around a prefix and a suffix, between which the model writes.

Knows how families spell them; knows no prompt. They are control tokens, so no user's text contains them.
"""

from __future__ import annotations

from dataclasses import dataclass

from freehold.run.tokenizer.core import Tokenizer

# Prefix, suffix, middle, in the order all of these were trained with (arXiv 2207.14255's PSM).
SPELLINGS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    # DeepSeek coder
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)
# Before a repository's name and before each file, of the models that were trained on several files (arXiv 2409.12186).
FILE_SPELLINGS = (
    ("<|repo_name|>", "<|file_sep|>"),  # Qwen coder
    ("<reponame>", "<file_sep>"),  # StarCoder 2
    ("<|reponame|>", "<|file_sep|>"),  # Granite
)
# What such a model writes when the gap is filled, beside its own end of text.
_ENDS = ("<|fim_pad|>", "<fim_pad>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>", "<file_sep>")


@dataclass(frozen=True, slots=True)
class FillTokens:
    """Ids around a gap, and those that end its filling."""

    prefix: int
    suffix: int
    middle: int
    ends: frozenset[int]
    files: tuple[int, int] | None = None  # before the repository's name, and before each file


def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """Return the tokens that mark a gap, or None where the model has none."""
    for spelled in SPELLINGS:
        prefix, suffix, middle = map(tokenizer.added_id, spelled)
        if prefix is not None and suffix is not None and middle is not None:
            ends = (tokenizer.added_id(text) for text in _ENDS)
            ids = {id for id in ends if id is not None}
            return FillTokens(
                prefix, suffix, middle, frozenset(ids | {prefix, suffix, middle}), _files(tokenizer)
            )
    return None


def _files(tokenizer: Tokenizer) -> tuple[int, int] | None:
    for spelled in FILE_SPELLINGS:
        repository, file = map(tokenizer.added_id, spelled)
        if repository is not None and file is not None:
            return repository, file
    return None
