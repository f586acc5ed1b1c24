"""Instruction following, as programs verify it: requests of our own with one to three rules each.

Strict counts the reply as it is, loose also one that would obey without its first or last line or its asterisks; by
prompt (all rules of a request) and by instruction (each rule). The name is IFEval's, the prompts are not: scores
cannot be set beside IFEval's.
Path: open_task -> instructions -> rules.obeys
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from freehold.evals.items import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.evals.tasks.rules import instruction_of, obeys, obeys_loosely
from freehold.types import Message

METRICS = (
    *("prompt_level_strict_acc", "inst_level_strict_acc"),
    *("prompt_level_loose_acc", "inst_level_loose_acc"),
)


def instructions() -> EvalTask:
    """Return the task, from data/instructions.jsonl."""
    text = (
        resources.files("freehold.evals").joinpath("data", "instructions.jsonl").read_text(encoding="utf-8")
    )
    items = tuple(_item(json.loads(line)) for line in text.splitlines() if line.strip())
    return EvalTask("ifeval", items, METRICS, original=len(items), config={"prompts": "freehold's own"})


def _item(doc: Mapping[str, Any]) -> EvalItem:
    rules = [(name, {**options, "request": doc["ask"]}) for name, options in doc["rules"]]
    prompt = " ".join([doc["ask"], *(instruction_of(name, options) for name, options in rules)])

    def mark(reply: ModelReply) -> ItemMark:
        strict = tuple(float(obeys(reply.text, *rule)) for rule in rules)
        loose = tuple(float(obeys_loosely(reply.text, *rule)) for rule in rules)
        broken = [name for (name, _), held in zip(rules, strict, strict=True) if not held]
        numbers = (float(all(strict)), strict, float(all(loose)), loose)
        return ItemMark(
            dict(zip(METRICS, numbers, strict=True)), f"breaks {', '.join(broken)}" if broken else ""
        )

    question = EvalQuestion((Message("user", prompt),), max_tokens=512)
    rules_json = json.dumps(doc["rules"], sort_keys=True)
    return EvalItem(doc, question, rules_json, mark, f"ifeval {rules_json}")
