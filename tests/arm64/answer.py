"""Print one greedy answer of a model, its tokens and by how much each led: `python -m tests.arm64.answer MODEL_PATH`.

Two machines print the same text where their arithmetic differs by less than the margins.
"""

from __future__ import annotations

import json
import sys

import numpy as np

import freehold
from freehold import _native as native

PROMPT = "Here is a list of the planets, from the nearest to the sun to the farthest: Mercury,"
TOKENS = 24


def answer(path: str) -> dict[str, object]:
    """Return the kernel table in use, the text, its tokens and each one's lead in logits."""
    with freehold.load(path, context=128) as llm:
        made = llm.generate(PROMPT, max_tokens=TOKENS, temperature=0, repetition_penalty=1.0)
        prompt = llm.tokenize(PROMPT)
        rows = np.sort(llm.logits([*prompt, *made.token_ids])[len(prompt) - 1 : -1], axis=1)
    margins = [round(float(x), 3) for x in rows[:, -1] - rows[:, -2]]
    return {"isa": native.isa(), "text": made.text, "tokens": list(made.token_ids), "margins": margins}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1])))
