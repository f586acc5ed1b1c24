"""A real llama that says scripted text: tests of the page need no fake engine.

All layers are zero, so the last hidden state is the newest token's embedding. Embeddings are rows of random signs, and
row j of the head is the embedding of the token that j follows: its logit stands `WIDTH` high, the others near
`sqrt(WIDTH)`, so the next token is certain at any temperature. A script is thus a chain of tokens that occur once; the
chat template ends the prompt with the first token of the script whose word the last question contains.
Path: scripted -> write_scripted -> containers.gguf_bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from freehold.run.formats import QuantType
from freehold.run.models.tiny import make
from freehold.run.models.tiny.make import SPECIAL, UNUSED_BYTES, _spell

WIDTH, CONTEXT = 256, 262_144
EOS = "<|im_end|>"
DEFAULT = "hello"
NOTHING: Mapping[str, object] = {}
_NORMAL, _CONTROL = 1, 3  # token types of a GGUF


Said = str | Sequence[str]  # a text; or its parts, of which no token spans two


def write_scripted(
    path: Path,
    scripts: Mapping[str, Said],
    *,
    piece: int = 4,
    preamble: str = "",
    about: Mapping[str, object] = NOTHING,
) -> Path:
    """Write a model that answers a question with `scripts[word]` for the first word that it contains.

    `preamble`: what its chat template begins with. `about`: metadata of the file besides its own.
    Its tokens have `piece` characters or a few more. `scripts` must hold DEFAULT, for other questions.
    """
    tokens = [*SPECIAL, *(_spell(b) for b in range(256) if b not in UNUSED_BYTES), "th"]
    after: dict[int, int] = {}  # token -> the one that it follows
    starts = {word: f"<|script {word}|>" for word in scripts}
    types = [_CONTROL] * len(SPECIAL) + [_NORMAL] * (len(tokens) - len(SPECIAL))
    seen = set(tokens)
    ends: dict[str, int] = {}
    for word, text in scripts.items():
        tokens.append(starts[word])
        types.append(_CONTROL)
        last = len(tokens) - 1
        whole = [text] if isinstance(text, str) else text
        for part in (each for some in whole for each in _pieces(some, piece, seen)):
            tokens.append(part)
            types.append(_NORMAL)
            after[len(tokens) - 1] = last
            last = len(tokens) - 1
        ends[word] = last
    signs = np.random.default_rng(7).choice(np.array([-1, 1], np.float32), (len(tokens), WIDTH))
    head = np.zeros_like(signs)
    for token, before in after.items():
        head[token] = signs[before]
    head[tokens.index(EOS)] = np.sum([signs[end] for end in ends.values()], axis=0)
    path.write_bytes(
        make.gguf_bytes({**_keys(tokens, types, starts, preamble), **about}, _tensors(signs, head))
    )
    return path


def _pieces(text: str, least: int, seen: set[str]) -> list[str]:
    """Cut a text into parts that no other token spells, each as byte-level BPE spells it."""
    parts: list[str] = []
    at = 0
    while at < len(text):
        size = least
        while (spelt := _spelt(text[at : at + size])) in seen and at + size < len(text):
            size += 1
        if spelt in seen:  # the end of the text, which is a token already: the part before takes it in
            if not parts:
                raise ValueError(f"a script of one token that another one has: {text!r}")
            spelt = parts.pop() + spelt
        seen.add(spelt)
        parts.append(spelt)
        at += size
    return parts


def _spelt(text: str) -> str:
    return "".join(_spell(b) for b in text.encode())


def _keys(tokens: list[str], types: list[int], starts: Mapping[str, str], preamble: str) -> dict[str, object]:
    choice = "".join(
        f"{{% elif '{word}' in asked %}}{{{{ '{start}' }}}}"
        for word, start in starts.items()
        if word != DEFAULT
    )
    template = preamble + (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}{% set asked = messages[-1]['content'] %}{% if false %}"
        f"{choice}{{% else %}}{{{{ '{starts[DEFAULT]}' }}}}{{% endif %}}{{% endif %}}"
    )
    eos, pad = tokens.index(EOS), 0
    return {
        "general.architecture": "llama",
        "general.name": "scripted",
        "general.file_type": 0,
        "llama.block_count": 1,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": 32,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.dimension_count": WIDTH // 8,
        "llama.rope.freq_base": 1e6,  # below, a file that states no window is cut to 4,096 tokens
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": eos,
        "tokenizer.ggml.padding_token_id": pad,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": template,
    }


def _tensors(signs: np.ndarray, head: np.ndarray) -> dict[str, tuple[QuantType, tuple[int, ...], bytes]]:
    ones, kv = np.ones(WIDTH, np.float32), WIDTH // 8
    shapes = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv, WIDTH),
        "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (32, WIDTH),
        "ffn_up": (32, WIDTH),
        "ffn_down": (WIDTH, 32),
    }
    values: dict[str, np.ndarray] = {
        "token_embd.weight": signs,
        "output.weight": head,
        "output_norm.weight": ones,
        "blk.0.attn_norm.weight": ones,
        "blk.0.ffn_norm.weight": ones,
        **{f"blk.0.{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()},
    }
    return {name: (QuantType.F32, v.shape, v.astype(np.float32).tobytes()) for name, v in values.items()}
