"""Greedy answers equal transformers' on the same file's float32 weights, wherever transformers is sure.

A step is judged where the reference's two best logits lie at least half a logit apart; below that, quantised
activations may choose otherwise, and the test goes on from the reference's own prefix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import freehold

VECTORS = Path(__file__).parent / "vectors" / "greedy"
MARGIN = 0.5
CODER = pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.big)
MODELS = ["smollm2-135m", "qwen2.5-coder-0.5b", CODER, "gemma3-270m"]


@pytest.mark.heavy
@pytest.mark.model
@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_equal_the_references_where_it_is_sure(
    model: str, model_path: Callable[[str], Path]
) -> None:
    facts = json.loads((VECTORS / f"{model}.json").read_text())
    judged = wrong = steps = 0
    with freehold.load(model_path(model), context=1024) as llm:
        for case in facts["prompts"]:
            prompt, tokens, margin = case["prompt"], np.array(case["tokens"]), np.array(case["margin"])
            rows = llm.logits([*prompt, *case["tokens"]])[len(prompt) - 1 : -1]
            sure = margin >= MARGIN
            wrong += int((rows.argmax(axis=1) != tokens)[sure].sum())
            judged += int(sure.sum())
            steps += len(tokens)
    assert len(facts["prompts"]) == 20
    assert judged >= 0.9 * steps, f"{judged} of {steps} steps are judged"
    assert wrong == 0, f"{wrong} of {judged} sure steps differ"


@pytest.mark.model
def test_generation_walks_the_path_its_logits_show(model_path: Callable[[str], Path]) -> None:
    case = json.loads((VECTORS / "smollm2-135m.json").read_text())["prompts"][0]
    with freehold.load(model_path("smollm2-135m"), context=1024) as llm:
        answer = llm.generate(case["prompt"], max_tokens=32, temperature=0, repetition_penalty=1.0)
        ids = [*case["prompt"], *answer.token_ids]
        rows = llm.logits(ids)[len(case["prompt"]) - 1 : -1]
    np.testing.assert_array_equal(rows.argmax(axis=1), answer.token_ids)
