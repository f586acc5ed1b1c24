"""The prompts of a run: lines of a file or items of a reasoning-gym data set, parted into training and unseen ones.

A file's line has `prompt` or `messages`, and what else its reward needs; its `answer`, if it has one, serves for
examples and attacks. Data sets make items without end, so no step sees one twice. What is unseen is set apart before
training, and no training prompt has the words of one. Knows a verifier's items; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from freehold.adapt.evals.verifier import Verifier
from freehold.adapt.lines import conversation, read_lines
from freehold.base.errors import UsageError
from freehold.base.types import Message

EXAMPLE = '{"prompt": "What is 2 + 3?", "answer": "5"}'
MOST_UNSEEN = 0.5  # of a file's lines that are set apart
PROBES = 20  # prompts that a verifier is tried on
_TRUTHS = 200  # training prompts whose answers an attack may list
_AHEAD = 4  # times the items of a step that are tried for words that are not among the unseen ones


@dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt, and what its verifier gets: the last message's text, and the item. `truth`: its answer, or ""."""

    prompt: str
    item: Mapping[str, Any]
    truth: str = ""
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptSet:
    """`step`: the prompts of a step, by its number. `digest`: of everything they follow from."""

    step: Callable[[int], list[PromptItem]]
    unseen: tuple[PromptItem, ...]
    probes: tuple[PromptItem, ...]  # training prompts, to try a verifier on
    digest: str


@dataclass(frozen=True, slots=True)
class PromptPlan:
    """How prompts are chosen. `shots`: solved items before each prompt, as turns. `a_step`: prompts of a step."""

    a_step: int
    unseen: int
    seed: int
    shots: int = 0
    system: str = ""


def prompts_of(verifier: Verifier, path: Path | None, unseen: Path | None, plan: PromptPlan) -> PromptSet:
    """Return a run's prompts: those of the file, or without one those of the verifier's data set.

    `unseen`: a file of prompts to test on, instead of some of `path`. Raises UsageError.
    """
    if path is None:
        if not verifier.is_gym:
            raise UsageError("there are no prompts", f"name a file: --prompts FILE.jsonl, lines as {EXAMPLE}")
        if unseen is not None:
            raise UsageError("--test is for --prompts; a data set makes its own", "leave --test out")
        return _gym_prompts(verifier, plan)
    return _file_prompts(path, unseen, plan)


# --- a file ------------------------------------------------------------------------------------------


def _file_prompts(path: Path, unseen: Path | None, plan: PromptPlan) -> PromptSet:
    read = read_lines(path, _parsed, EXAMPLE, same=_words)
    items, digest = list(read.items), read.digest
    random.Random(plan.seed).shuffle(items)
    examples = [each for each in items if each.truth][: plan.shots]
    if len(examples) < plan.shots:
        raise UsageError(f"--shots {plan.shots}: {path} has {len(examples)} lines with an answer")
    used = {id(each) for each in examples}
    items = [each for each in items if id(each) not in used]
    if unseen is not None:
        test = read_lines(unseen, _parsed, EXAMPLE, same=_words)
        apart, digest = list(test.items)[: plan.unseen], digest + test.digest
    else:
        count = min(plan.unseen, int(len(items) * MOST_UNSEEN))
        apart, items = items[:count], items[count:]
    seen = {_words(each) for each in apart}
    items = [each for each in items if _words(each) not in seen]
    if not items:
        raise UsageError(f"{path} has no line left to train on", "add lines, or set fewer apart: --unseen N")
    to_prompt = _asker(plan, examples)
    train = [to_prompt(each) for each in items]

    def step(number: int) -> list[PromptItem]:
        first = (number - 1) * plan.a_step
        return [train[_place(i, len(train), plan.seed)] for i in range(first, first + plan.a_step)]

    return PromptSet(
        step, tuple(map(to_prompt, apart)), tuple(train[:_TRUTHS]), _digest(plan, "file", digest)
    )


def _place(number: int, count: int, seed: int) -> int:
    """Return the line of the number-th prompt: every epoch visits all lines in an order of its own."""
    epoch, at = divmod(number, count)
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order[at]


def _parsed(number: int, table: Mapping[str, Any]) -> PromptItem:
    messages, truth = conversation(table), table.get("answer", "")
    stated = str(truth) if isinstance(truth, str | int | float) else ""
    return PromptItem(messages[-1].content, table, stated, messages)


# --- a data set --------------------------------------------------------------------------------------


def _gym_prompts(verifier: Verifier, plan: PromptPlan) -> PromptSet:
    """Item numbers: first the examples, then the unseen ones, then each step's."""
    examples = _gym_items(verifier, 0, plan.shots)
    to_prompt = _asker(plan, examples)
    unseen = _gym_items(verifier, plan.shots, plan.unseen)
    apart = list({_words(each): each for each in unseen}.values())
    taken = {_words(each) for each in (*examples, *apart)}
    base, stride = plan.shots + plan.unseen, plan.a_step * _AHEAD

    def step(number: int) -> list[PromptItem]:
        first = base + (number - 1) * stride
        fresh: list[PromptItem] = []
        for start in range(first, first + stride, plan.a_step):
            fresh += [each for each in _gym_items(verifier, start, plan.a_step) if _words(each) not in taken]
            if len(fresh) >= plan.a_step:
                break
        if not fresh:
            raise UsageError(
                f"{verifier.spec} makes too few different items: all of step {number} are among the unseen ones",
                "set fewer apart: --unseen N, or widen its settings",
            )
        return [to_prompt(each) for each in fresh[: plan.a_step]]

    probes = tuple(map(to_prompt, _gym_items(verifier, base, PROBES)))
    return PromptSet(step, tuple(map(to_prompt, apart)), probes, _digest(plan, "rg", verifier.digest))


def _gym_items(verifier: Verifier, first: int, count: int) -> list[PromptItem]:
    return [
        PromptItem(each.question, {"index": each.index}, each.answer, (Message("user", each.question),))
        for each in (verifier.items(first, count) if count else [])
    ]


# --- both --------------------------------------------------------------------------------------------


def _asker(plan: PromptPlan, examples: Sequence[PromptItem]) -> Callable[[PromptItem], PromptItem]:
    """Return a function that puts the system's message and the examples before an item's own messages."""
    turns = [m for each in examples for m in (*each.messages, Message("assistant", each.truth))]
    head = (*([Message("system", plan.system)] if plan.system else ()), *turns)
    return lambda each: PromptItem(each.prompt, each.item, each.truth, (*head, *each.messages))


def _words(item: PromptItem) -> str:
    return " ".join(item.prompt.split()).casefold()


def _digest(plan: PromptPlan, kind: str, source: str) -> str:
    told = [kind, source, plan.a_step, plan.unseen, plan.seed, plan.shots, plan.system]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
