"""Tiny random encoders as sentence-transformers folders, and the texts that golden embeddings are of.

Knows BERT's names and shapes in safetensors, and WordPiece; computes nothing. Weights are drawn as weights.py draws.
Path: ENCODERS[name] -> write_encoder -> make_encoders.py runs it through transformers; tests run it through us.
"""

from __future__ import annotations

import json
import string
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from freehold.run.models.tiny.make import VOCAB, safetensors_bytes, tensor

LENGTHS = (
    1,
    9,
    33,
    64,
)  # tokens of the golden sequences: a tile's tail, a vector's, and the longest there is
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = (
    "A cat sat on the mat.",
    "Ein Kätzchen saß auf der Fensterbank.",
    "The stock market fell by three percent on Monday.",
    "def add(a, b): return a + b",
    "人工智能正在改变世界",
    "!!!",
    "",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "Numbers: 3.14159, 1,000,000 and -273.15 °C; e-mail: someone@example.org",
    "tab\tand\nnewline, and a very  wide   space",
    "The treaty, which had been signed in the spring, was ratified only after the second chamber had debated it for "
    "nine days; by then the harvest was in, the bread was cheap again, and nobody in the capital remembered why the "
    "tariff on rye had once seemed worth a government. " * 3,
)


@dataclass(frozen=True)
class Encoder:
    """An encoder to be judged: `seed` draws its weights, `config` is its config.json."""

    seed: int
    config: dict[str, Any]


def _config(hidden: int, heads: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "num_hidden_layers": 3,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        **more,
    }


ENCODERS = {
    "bert": Encoder(61, _config(128, 4, 256)),
    # Neither 96 nor 160 is a multiple of 128, so this one keeps float weights.
    "bert-narrow": Encoder(62, _config(96, 6, 160, type_vocab_size=1)),
}


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """List an encoder's tensors: name -> shape."""
    config = ENCODERS[name].config
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tables = {"word": VOCAB, "position": 64, "token_type": config["type_vocab_size"]}
    out: dict[str, tuple[int, ...]] = {
        f"embeddings.{kind}_embeddings.weight": (rows, hidden) for kind, rows in tables.items()
    }
    linear = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (inner, hidden),
        "output.dense": (hidden, inner),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        for part, shape in linear.items():
            out |= {f"{at}.{part}.weight": shape, f"{at}.{part}.bias": shape[:1]}
    return out | {f"{norm}.{kind}": (hidden,) for norm in norms for kind in ("weight", "bias")}


def write_encoder(name: str, folder: Path, *, dtype: str = "F32", pooling: str = "mean") -> Path:
    """Write an encoder as sentence-transformers keeps it, with a pooler that no embedding needs."""
    family = ENCODERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    hidden = family.config["hidden_size"]
    named = {**shapes(name), "pooler.dense.weight": (hidden, hidden), "pooler.dense.bias": (hidden,)}
    weights = {key: tensor(family.seed, key, shape) for key, shape in named.items()}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(weights, dtype))
    files: dict[str, Any] = {
        "config.json": {"architectures": ["BertModel"], **family.config},
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"},
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling")])
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            "pooling_mode_cls_token": pooling == "cls",
            "pooling_mode_mean_tokens": pooling == "mean",
        },
    }
    for path, value in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value), encoding="utf-8")
    return folder


def tokenizer_json() -> dict[str, Any]:
    """Give a WordPiece tokenizer of letters, digits and a few words."""
    letters = string.ascii_lowercase + string.digits
    vocab = [*SPECIAL, *letters, *(f"##{c}" for c in letters), *".,;:!?-'()", "the", "cat", "##ing"]
    vocab += [f"[unused{i}]" for i in range(VOCAB - len(vocab))]
    return {
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for i, token in enumerate(SPECIAL)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                token: {"id": token, "ids": [SPECIAL.index(token)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(vocab)},
        },
    }


def sequences(name: str) -> list[np.ndarray]:
    """Draw the golden sequences: int64 ids, one of each of LENGTHS."""
    words = np.random.PCG64([ENCODERS[name].seed, zlib.crc32(b"ids")]).random_raw(sum(LENGTHS))
    ids = (words % np.uint64(VOCAB - 5)).astype(np.int64) + 5
    return np.split(ids, np.cumsum(LENGTHS)[:-1])
