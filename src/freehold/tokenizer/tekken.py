"""Builds a Tokenizer from Mistral's tekken.json, which its repositories may ship in place of a tokenizer.json.

Knows that file's layout: tokens as bytes by rank, the word pattern, and control tokens that take the first ids; knows
no directory. Two neighbours merge where their union is a token, the lowest rank first, and a word that is a token
needs no merge (tiktoken's rule).
Path: directory.tokenizer_from_dir -> tekken.tokenizer_from_tekken -> Tokenizer
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import Regex, pre_tokenizers

from freehold._native import Bpe, Strings
from freehold.errors import BadModelFile
from freehold.tokenizer.core import AddedToken, Tokenizer, TokenKind, Vocabulary, byte_alphabet
from freehold.tokenizer.encoders import merging_encoder
from freehold.tokenizer.vocab import MAX_TOKENS, end_ids

# Files of versions 3 to 7 name no control tokens: these are theirs, and the rest up to the stated count are fillers.
_CONTROL = (
    *(
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
    ),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
    ),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_IMPLIED = ("v3", "v7")


def tokenizer_from_tekken(data: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a parsed tekken.json. Raise BadModelFile for tokens that leave gaps or exceed it."""
    config = data["config"]
    control = _control(data, int(config["default_num_special_tokens"]))
    words = _words(data["vocab"], int(config["default_vocab_size"]) - len(control))
    texts = Strings([*control, *words])
    kinds = [TokenKind.CONTROL] * len(control) + [TokenKind.NORMAL] * len(words)
    reachable = (np.arange(len(kinds)) >= len(control)).astype(np.uint8)
    bpe = Bpe(texts, reachable, byte_level=True, ignore_merges=True)
    bpe.merge_by_rank(np.arange(len(kinds), dtype=np.int32))
    added = tuple(AddedToken(id, text, control=True) for id, text in enumerate(control))
    ids = {token.text: token.id for token in added}
    vocabulary = Vocabulary(
        texts=texts,
        kinds=kinds,
        byte_level=True,
        added=added,
        prefix_ids=(ids["<s>"],),
        suffix_ids=(),
        bos_id=ids["<s>"],
        eos_id=ids["</s>"],
        eos_ids=end_ids(added, (ids["</s>"],)),
        marks_are_spaces=False,
        strips_leading_space=False,
        pad_id=ids.get("<pad>"),
        unk_id=ids.get("<unk>"),
    )
    return Tokenizer(merging_encoder(bpe, byte_alphabet(), None, _cutter(config["pattern"])), vocabulary)


def _cutter(pattern: str) -> pre_tokenizers.PreTokenizer:
    try:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises a bare Exception
        raise BadModelFile(f"tekken.json's word pattern cannot be read: {error}") from error
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _control(data: Mapping[str, Any], count: int) -> list[str]:
    """List the control tokens by id."""
    listed = data.get("special_tokens")
    if listed is None:
        if (version := data["config"].get("version")) not in _IMPLIED:
            raise BadModelFile(f"tekken.json of version {version!r} lists no special_tokens")
        named = list(_CONTROL)
    else:
        named = [str(token["token_str"]) for token in sorted(listed, key=lambda token: token["rank"])]
        if [token["rank"] for token in sorted(listed, key=lambda token: token["rank"])] != [
            *range(len(named))
        ]:
            raise BadModelFile("the ranks of tekken.json's special_tokens are not those from 0 on")
    if not 0 < len(named) <= count <= MAX_TOKENS:
        raise BadModelFile(f"tekken.json states {count:,} special tokens and names {len(named):,}")
    return named + [f"<SPECIAL_{id}>" for id in range(len(named), count)]


def _words(vocab: list[Mapping[str, Any]], count: int) -> list[str]:
    """List the first `count` tokens by rank, spelled in the byte alphabet."""
    symbols = {byte: char for char, byte in byte_alphabet().items()}
    if not 0 < count <= min(len(vocab), MAX_TOKENS):
        raise BadModelFile(f"tekken.json states {count:,} tokens and holds {len(vocab):,}")
    if any(entry["rank"] != rank for rank, entry in enumerate(vocab[:count])):
        raise BadModelFile("the ranks of tekken.json's vocab are not those from 0 on")
    spelled = (base64.b64decode(entry["token_bytes"], validate=True) for entry in vocab[:count])
    return ["".join(symbols[byte] for byte in token) for token in spelled]
