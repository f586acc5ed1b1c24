"""The guard stops loops that small models fall into, and leaves long regular text alone."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from freehold.cli.chat.answer import LoopGuard

WORDS = ["the", "model", "reads", "a", "prompt", "and", "writes", "an", "answer", "of", "words", "one", "by"]
PASSAGE = "It was a dark night, and the captain said to the mate: tell us a story. And so the mate began: "
LOOPS = {
    "a letter": "a" * 4_000,
    "a line": "I am sorry, I cannot help with that.\n" * 120,
    "a passage": PASSAGE * 40,
    "a long passage": (PASSAGE + " ".join(reversed(PASSAGE.split())) + "; " + PASSAGE.upper()) * 40,
    "a line of Chinese": "我不知道,请再说一遍。" * 300,
    "list items": "".join(f"{random.Random(i).choice((18, 20, 24, 24, 24))} months, " for i in range(1_500)),
    "blank lines": "x\n" + "\n" * 3_000,
}
GENERATOR = random.Random(7)
SOUND = {
    "prose": " ".join(GENERATOR.choice(WORDS) for _ in range(3_000)),
    "numbers": "\n".join(map(str, range(1, 3_000))),
    "a table": "".join(f"| {i} | {i * i} | {'even' if i % 2 == 0 else 'odd'} |\n" for i in range(600)),
    "records": json.dumps(
        [{"id": i, "name": f"user{i}", "active": i % 3 == 0} for i in range(400)], indent=1
    ),
    "zeros and ones": "".join(GENERATOR.choice("01") for _ in range(6_000)),
    "a matrix": "\n".join(", ".join("1" if i == j else "0" for j in range(30)) for i in range(30)),
    "code": "".join(
        f"def test_{w}_{v}():\n    assert run('{w}') == '{v}'\n\n"
        for w, v in itertools.product(WORDS, repeat=2)
    ),
    "a rule in a text": "A heading\n" + "-" * 800 + "\n",
}


def stopped_after(text: str) -> int | None:
    guard, pieces = LoopGuard(), [text[i : i + 5] for i in range(0, len(text), 5)]
    return next((5 * (i + 1) for i, piece in enumerate(pieces) if guard.add(piece)), None)


@pytest.mark.parametrize("name", LOOPS)
def test_loop_is_stopped_before_its_end(name: str):
    after = stopped_after("Sure, here is a story for you. " + LOOPS[name])
    assert after is not None and after < 0.9 * len(LOOPS[name])


@pytest.mark.parametrize("name", SOUND)
def test_regular_text_is_left_alone(name: str):
    assert stopped_after(SOUND[name]) is None
