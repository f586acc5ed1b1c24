"""reasoning-gym's data sets: items made from a seed, and a verifier for each.

The package is installed by the user. Its verifiers are not ours: they see a model's answers in a confined process, and
one that raises, or whose score is not a number from 0 to 1, marks the answer wrong and is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from freehold.adapt.evals.evaluate import EvalItem, EvalQuestion, EvalTask, ItemMark, ModelReply
from freehold.adapt.evals.verifier import GYM, PACKAGE, RewardScore, Verifier, gym_options
from freehold.base.config import nearest
from freehold.base.errors import UsageError
from freehold.base.types import Message

ITEMS, SEED = 100, 0
MOST_ITEMS = 100_000  # they are all made before the first is asked
_ASK = "{}\n\nWrite the final answer alone between <answer> and </answer>."
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL)


def gym(spec: str, size: int | None) -> EvalTask:
    """Return the task of DATASET[:k=v[,k=v...]]; `seed` and `size` are options like the data set's own.

    Raises UsageError where the package is missing, or has no such data set or option.
    """
    name, _, rest = spec.partition(":")
    options = {"seed": SEED, "size": size or ITEMS, **gym_options(rest)}
    count = options["size"]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_ITEMS:
        raise UsageError(f"rg:{spec}: size is not a whole number from 1 to {MOST_ITEMS:,}")
    dataset = _dataset(name, options)
    try:
        entries = list(dataset)
    except Exception as e:  # options of a type that the data set did not look at
        raise _refused(name, e) from None
    marker = _Marker(GYM + spec, size or ITEMS)
    items = tuple(_item(name, options, marker, i, entry) for i, entry in enumerate(entries))
    config = {"dataset": name, **options}
    return EvalTask(
        f"rg_{name}", items, ("acc", "score"), original=len(items), config=config, close=marker.close
    )


def _dataset(name: str, options: Mapping[str, Any]) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UsageError(f"rg:{name} needs reasoning-gym", f"pip install {PACKAGE}") from None
    if name not in DATASETS:
        near = nearest(name, list(DATASETS))
        listed = 'python -c "from reasoning_gym.factory import DATASETS; print(*DATASETS)" lists them'
        raise UsageError(
            f"reasoning-gym has no data set {name!r}", f"did you mean rg:{near}?" if near else listed
        )
    try:
        return reasoning_gym.create_dataset(name, **options)
    except Exception as e:
        raise _refused(name, e) from None


def _refused(name: str, error: Exception) -> UsageError:
    return UsageError(f"rg:{name}: {error}"[:200], "see the data set's own options")


def _item(
    name: str, options: Mapping[str, Any], marker: _Marker, index: int, entry: Mapping[str, Any]
) -> EvalItem:
    shown = {key: value for key, value in options.items() if key != "size"}  # --limit makes no other items
    doc = {"dataset": name, "question": entry["question"], "answer": entry["answer"], "options": shown}

    def mark(reply: ModelReply) -> ItemMark:
        return marker.mark(index, entry["question"], reply)

    question = EvalQuestion((Message("user", _ASK.format(entry["question"])),), max_tokens=1024)
    target = str(entry["answer"])
    return EvalItem(doc, question, target, mark, f"rg {json.dumps(doc, sort_keys=True, default=str)}")


def extracted(text: str) -> str:
    """Return the last marked answer, or all of the text where none is marked."""
    matches = _ANSWER.findall(text)
    return (matches[-1] if matches else text).strip()


def marked(score: RewardScore) -> ItemMark:
    """Return the mark of a score; a verifier's own failure counts as wrong and is named."""
    if score.failed:
        return ItemMark({"acc": 0.0, "score": 0.0}, score.why, fault=f"the verifier failed: {score.failed}")
    full = score.value == 1.0
    return ItemMark({"acc": float(full), "score": score.value}, "" if full else f"scored {score.value:.2g}")


class _Marker:
    """Marks answers by the data set's confined verifier, which starts with the first of them."""

    def __init__(self, spec: str, size: int) -> None:
        self._spec, self._size = spec, size
        self._verifier: Verifier | None = None

    def mark(self, index: int, question: str, reply: ModelReply) -> ItemMark:
        """Mark a reply to the item of this index."""
        if self._verifier is None:
            self._verifier = Verifier(self._spec, size=self._size)
        [score] = self._verifier.score([(question, extracted(reply.text), {"index": index})])
        return marked(score)

    def close(self) -> None:
        """End the verifier's process, if one runs; the next answer starts another."""
        if self._verifier is not None:
            self._verifier.close()
