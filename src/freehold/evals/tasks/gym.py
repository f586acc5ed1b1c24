"""reasoning-gym's data sets: items made from a seed, and a verifier for each.

The package is installed by the user. Its verifiers are not ours: one that raises, or whose score is not a number
from 0 to 1, marks the answer wrong and is counted.
Path: open_task -> gym -> EvalTask
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from freehold.config import nearest
from freehold.errors import UsageError
from freehold.evals.items import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.types import Message

PACKAGE = "reasoning-gym"
ITEMS, SEED = 100, 0
_ASK = "{}\n\nWrite the final answer alone between <answer> and </answer>."
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


def gym(spec: str, size: int | None) -> EvalTask:
    """Return the task of DATASET[:k=v[,k=v...]]; `seed` and `size` are options like the data set's own.

    Raises UsageError where the package is missing, or has no such data set or option.
    """
    name, _, rest = spec.partition(":")
    options = {"seed": SEED, "size": size or ITEMS, **gym_options(rest)}
    found = _dataset(name, options)
    items = tuple(_item(name, options, found, entry) for entry in found)
    config = {"dataset": name, **options}
    return EvalTask(f"rg_{name}", items, ("acc", "score"), original=len(items), config=config)


def gym_options(text: str) -> dict[str, Any]:
    """Return the options written after a data set: k=v[,k=v...], values as JSON or as text. Raises UsageError."""
    made: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{part!r} is not an option", "write rg:DATASET:key=value,key=value")
        try:
            made[key] = json.loads(value)
        except ValueError:
            made[key] = value
    return made


def _dataset(name: str, options: Mapping[str, Any]) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UsageError(f"rg:{name} needs reasoning-gym", f"pip install {PACKAGE}") from None
    if name not in DATASETS:
        near = nearest(name, list(DATASETS))
        raise UsageError(
            f"reasoning-gym has no data set {name!r}", f"did you mean rg:{near}?" if near else ""
        )
    try:
        return reasoning_gym.create_dataset(name, **options)
    except (TypeError, ValueError, AssertionError) as e:
        raise UsageError(f"rg:{name}: {e}"[:200], "see the data set's own options") from None


def _item(name: str, options: Mapping[str, Any], dataset: Any, entry: Mapping[str, Any]) -> EvalItem:
    shown = {key: value for key, value in options.items() if key != "size"}  # --limit makes no other items
    doc = {
        "dataset": name,
        "question": entry["question"],
        "answer": entry["answer"],
        "options": shown,
    }

    def mark(reply: ModelReply) -> ItemMark:
        return scored(dataset, entry, extracted(reply.text))

    question = EvalQuestion((Message("user", _ASK.format(entry["question"])),), max_tokens=1024)
    target = str(entry["answer"])
    return EvalItem(doc, question, target, mark, f"rg {json.dumps(doc, sort_keys=True, default=str)}")


def extracted(text: str) -> str:
    """Return the last marked answer, or all of the text where none is marked."""
    found = _ANSWER.findall(text)
    return (found[-1] if found else text).strip()


def scored(dataset: Any, entry: Mapping[str, Any], answer: str) -> ItemMark:
    """Return the verifier's score; its own failures count as wrong and are named."""
    wrong = {"acc": 0.0, "score": 0.0}
    try:
        score = float(dataset.score_answer(answer, entry))
    except Exception as e:  # a stranger's code: whatever it raises, the verifier is what failed
        return ItemMark(wrong, fault=f"the verifier raised {type(e).__name__}")
    if not math.isfinite(score) or not 0 <= score <= 1:
        return ItemMark(wrong, fault="the verifier's score is not from 0 to 1")
    return ItemMark(
        {"acc": float(score == 1.0), "score": score}, "" if score == 1.0 else f"scored {score:.2g}"
    )
