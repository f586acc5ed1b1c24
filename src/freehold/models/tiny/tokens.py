"""The tokenizer of tiny models: 256 byte-level tokens, as both file formats hold them, and a chat template.

Path: make.write_safetensors, make.write_gguf -> tokenizer_json, gguf_keys
"""

from __future__ import annotations

from typing import Any

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, IM_START, IM_END = range(5)
UNUSED_BYTES = {0xC0, 0xC1, *range(0xF5, 0x100)}  # never occur in UTF-8; their places hold the others
WORDS = ["\u0120t", "he", "in", "\u0120a", "er", "on", "re", "\u0120the"]
MERGES = ["\u0120 t", "h e", "i n", "\u0120 a", "e r", "o n", "r e", "\u0120t he"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 256
_NORMAL, _CONTROL = 1, 3  # token types of a GGUF


def vocabulary() -> list[str]:
    """List the 256 tokens as byte-level BPE spells them: special ones, each byte of UTF-8, eight words."""
    words = [_spell(b) for b in range(256) if b not in UNUSED_BYTES]
    tokens = [*SPECIAL, *words, *WORDS]
    assert len(tokens) == VOCAB and len(set(tokens)) == VOCAB
    return tokens


# Byte-level BPE spells printable Latin-1 as itself, the other bytes from U+0100 on.
_PLAIN = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [b for b in range(256) if b not in _PLAIN]


def _spell(byte: int) -> str:
    """Spell a byte as byte-level BPE does."""
    return chr(byte) if byte in _PLAIN else chr(256 + _OTHERS.index(byte))


def tokenizer_json() -> dict[str, Any]:
    """Give the tokenizer.json of the vocabulary (GPT-2's word splitter)."""
    added = [
        {"id": i, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(vocabulary())},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """Give the tokenizer_config.json, with the chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[BOS],
        "eos_token": SPECIAL[EOS],
        "pad_token": SPECIAL[PAD],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config() -> dict[str, Any]:
    """Give the generation_config.json: two tokens end an answer."""
    ids = {"bos_token_id": BOS, "eos_token_id": [EOS, IM_END], "pad_token_id": PAD}
    return ids | {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


def gguf_keys() -> dict[str, Any]:
    """Give the same as keys of a GGUF."""
    types = [_CONTROL if i < len(SPECIAL) else _NORMAL for i in range(VOCAB)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
        "tokenizer.ggml.padding_token_id": PAD,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
