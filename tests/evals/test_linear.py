"""No judge, rule or reader of an answer takes more than linear time: each gets 100,000 characters made against it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest

# In a process with a limit: 100,000 characters squared are minutes.
_PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (40, 40))
from tests.evals.test_linear import PARTS
PARTS[sys.argv[1]]()
"""
_LONG = 100_000
_FENCE = "`" * 3


def _hostile() -> list[str]:
    """Return texts whose parts begin what never ends."""
    parts = [
        "\n",
        " ",
        "\n ",
        ".",
        "! ",
        "#\n",
        "1",
        "-",
        "- ",
        "* ",
        "*a",
        "<<a",
        "[a",
        "[",
        "<",
        "'a",
        "`",
        f"{_FENCE}\n",
    ]
    parts += ["\n" + _FENCE + " ", "P.S. ", "Section ", "(", "a.", '"\\', "{:", ":1", "a b"]
    made = [part * (_LONG // len(part)) for part in parts]
    heads = (_FENCE, _FENCE + "\n", _FENCE + "json\n", "*", "**", "<<", "[", "<answer>", "1", "- ", "P.S.")
    made += [head + body * _LONG for head in heads for body in ("a", "\n")]
    return [text + "x" for text in made]


def _fences() -> None:
    from freehold.adapt.evals.samples import code_in, judge

    marks = [judge(*each).mark for each in (("json", 1), ("exact", "a"), ("contains", "b"))]
    for text in _hostile():
        code_in(text)
        for mark in marks:
            mark(text)


def _rules() -> None:
    from freehold.adapt.evals.tasks.instructions import RULES

    options = {"n": 3, "word": "a", "text": "a", "letter": "a", "request": "a", "options": ["a"]}
    for text in _hostile():
        for rule in RULES.values():
            rule.holds(text, options)


def _calls() -> None:
    from freehold.adapt.evals.tasks.bfcl import text_calls
    from freehold.adapt.evals.tasks.gym import _ANSWER

    for text in _hostile():
        _ANSWER.search(text)
        with suppress(ValueError):
            text_calls(text)


def _dialects() -> None:
    from freehold.base.types import Tool
    from freehold.run.tokenizer.dialects import ToolParser, kimi

    for text in _hostile():
        parser = ToolParser(kimi.KIMI, [Tool("a", "", {})])
        list(parser.push(f"{kimi.OPEN}{kimi.CALL}a{text}{kimi.ARGUMENTS}{{}}"))
        parser.finish()


PARTS = {"fences": _fences, "rules": _rules, "calls": _calls, "dialects": _dialects}


@pytest.mark.heavy
@pytest.mark.parametrize("part", PARTS)
def test_readers_of_answers_take_linear_time(part: str):
    done = subprocess.run([sys.executable, "-c", _PROGRAM, part], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
