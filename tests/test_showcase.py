"""What `make run` shows first is right: the function in the answer does what was asked, here and in the README."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

import freehold

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
QUESTION = MAKEFILE.split("QUESTION := ", 1)[1].splitlines()[0]


def check(answer: str) -> None:
    code = answer.split("```python", 1)[1].split("```", 1)[0]
    tree = ast.parse(code)
    assert any(isinstance(node, ast.FunctionDef) for node in tree.body)
    assert "[::-1]" in code
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    given = [text for text in texts if isinstance(text, str) and len(text) >= 4]
    assert any(word[::-1] in answer for word in given), answer


def test_the_answer_in_the_readme_is_right():
    shown = re.findall(r"(?:^    .*\n|^\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    check(textwrap.dedent(max(shown, key=len)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("qwen2.5-coder-0.5b", marks=pytest.mark.model),
        pytest.param(
            "qwen2.5-coder:1.5b", marks=pytest.mark.big
        ),  # where it runs fast enough, `make run` takes it
    ],
)
def test_first_answer_reverses_a_string_and_shows_the_right_result(model_path, name):
    with freehold.load(model_path(name), context=1024) as llm:
        answer = llm.chat(QUESTION, temperature=0, seed=1, max_tokens=250)
    assert answer.finish_reason == "stop"
    check(answer.text)


def test_make_run_names_no_model_and_asks_the_question():
    recipe = MAKEFILE.split("\nrun:", 1)[1].split("\n\n", 1)[0]
    assert '/freehold run "$(QUESTION)" --temperature 0' in recipe
