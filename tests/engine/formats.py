"""The tokenizer of the tiny models, and formats for their answers."""

from __future__ import annotations

import numpy as np

from freehold.base.types import Format
from freehold.run.engine.constrain.constraint import Constraint
from freehold.run.engine.constrain.grammar import Grammars
from freehold.run.tokenizer import tokenizer_from_gguf
from tests.vectors.files import EOS, MERGES, SPECIAL, vocabulary

TOKENIZER = tokenizer_from_gguf(
    {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": np.array([3 if t in SPECIAL else 1 for t in vocabulary()], np.int32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": np.uint32(EOS),
    }
)
GRAMMARS = Grammars(TOKENIZER)
FORMATS = [
    Format("regex", "(the|[a-f]{1,4}){3,9}"),
    Format("json"),
    Format(
        "json_schema",
        '{"type": "object", "properties": {"he": {"type": "boolean"}, "on": {"enum": [1, 22, "re"]}},'
        ' "required": ["on"]}',
    ),
]


def constraint(format: Format) -> Constraint:
    return Constraint(GRAMMARS.grammar(format), TOKENIZER)
