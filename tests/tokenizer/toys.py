"""Small vocabularies as GGUF metadata, for tests that need no model."""

from __future__ import annotations

import numpy as np

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_symbols() -> list[str]:
    """Return GPT-2's 256 stand-ins, in byte order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def byte_level(pre: str = "qwen2", **more: object) -> dict[str, object]:
    """Return a byte-level BPE vocabulary: 256 bytes, five merges, ChatML's tokens and a user-defined one."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ hello"]
    words = [line.replace(" ", "") for line in merges]
    special = ["<|im_start|>", "<|im_end|>", "<tool>", "[PAD]"]
    texts = [*byte_symbols(), *words, *special]
    kinds = [NORMAL] * (256 + len(words)) + [CONTROL, CONTROL, USER, UNUSED]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": np.uint32(texts.index("<|im_end|>")),
        **more,
    }


def sentencepiece(**more: object) -> dict[str, object]:
    """Return a SentencePiece BPE vocabulary with byte fallback, a space prefix and a user-defined token."""
    head = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    bytes_ = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    words = ["▁a", "ab", "abc", "▁abc", "bc", "▁▁"]
    pieces = [(word, -float(rank), NORMAL) for rank, word in enumerate(words, 1)]
    letters = [(letter, -100.0 - rank, NORMAL) for rank, letter in enumerate("▁abcdé")]
    rows = [*head, *bytes_, *pieces, *letters, ("<img>", 0.0, USER)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [row[0] for row in rows],
        "tokenizer.ggml.scores": np.array([row[1] for row in rows], np.float32),
        "tokenizer.ggml.token_type": np.array([row[2] for row in rows], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        **more,
    }


def unigram() -> dict[str, object]:
    """Return a SentencePiece unigram vocabulary."""
    rows = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
    rows += [
        ("▁", -3.0, NORMAL),
        ("▁ab", -2.0, NORMAL),
        ("a", -4.0, NORMAL),
        ("b", -4.0, NORMAL),
        ("bb", -5.0, NORMAL),
    ]
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [row[0] for row in rows],
        "tokenizer.ggml.scores": np.array([row[1] for row in rows], np.float32),
        "tokenizer.ggml.token_type": np.array([row[2] for row in rows], np.int32),
        "tokenizer.ggml.eos_token_id": np.uint32(1),
        "tokenizer.ggml.unknown_token_id": np.uint32(2),
    }
