"""Print one greedy answer of a GGUF file, its tokens and by how much each led: `python -m tests.arm64.answer PATH`.

Two machines print the same text where their arithmetic differs by less than the leads. From the file's bytes to the
text, but for the chat template, which another process renders.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from freehold import _native as native
from freehold.base.types import SamplingParams
from freehold.run.engine import Engine, scoring
from freehold.run.formats import open_model_file
from freehold.run.models.load import load_model
from freehold.run.tokenizer import tokenizer_from_gguf

PROMPT = "Here is a list of the planets, from the nearest to the sun to the farthest: Mercury,"
TOKENS = 24


def answer(path: str) -> dict[str, object]:
    """Return the kernel table in use, the text, its tokens and each one's lead in logits."""
    with open_model_file(path) as file:
        tokenizer = tokenizer_from_gguf(file.metadata)
    engine = Engine(load_model(path, threads=1), context=128)
    prompt = tokenizer.encode(PROMPT)
    tokens = [out.id for out in engine.generate(prompt, SamplingParams(temperature=0.0), max_tokens=TOKENS)]
    rows = np.sort(scoring.logits(engine, [*prompt, *tokens])[len(prompt) - 1 : -1], axis=1)
    leads = [round(float(x), 3) for x in rows[:, -1] - rows[:, -2]]
    return {"isa": native.isa(), "text": tokenizer.decode(tokens), "tokens": tokens, "leads": leads}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])))
