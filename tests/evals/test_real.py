"""--try on two real models: a user's own cases change the ranking that published results made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import load_settings
from freehold.cli import main as cli_main
from freehold.run.store import Store

pytestmark = pytest.mark.model

SMALL, CODER = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct"
QUIZ = {
    "Who was the first person on the moon?": "Armstrong",
    "Who discovered penicillin?": "Fleming",
    "What is H2O commonly called?": "water",
    "Which animal is the fastest on land?": "cheeta",
}
CODE = {
    "Write a Python expression that reverses the string s.": "[::-1]",
    "Write a Python list comprehension of the squares of 0 to 9.": "range(10)",
    "Write a regular expression that matches one or more digits.": "\\d+",
    "Write a bash command that prints the current directory.": "pwd",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own over the models of the user's, so that no answer is kept from before."""
    settings = load_settings()
    for name in ("smollm2:135m", "qwen2.5-coder:0.5b"):
        Store(settings).pull(name)
    (tmp_path / "models").symlink_to(settings.home / "models")
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def ranked(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[dict[str, str]], Any]:
    """Return a function from questions and what an answer must contain to what --try says of them."""

    def ranked(cases: dict[str, str]) -> Any:
        path = home / "mine.jsonl"
        rows = [{"prompt": p, "contains": c, "max_tokens": 48} for p, c in cases.items()]
        path.write_text("\n".join(map(json.dumps, rows)))
        args = ["advise", "chat", "--installed", "--max-size", "0.5b", "--min-speed", "0", "--try", str(path)]
        assert cli_main.run([*args, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return ranked


@pytest.mark.heavy
def test_own_cases_change_the_ranking(ranked: Callable[[dict[str, str]], Any]):
    """A quiz goes to the general model and code to the coder: whichever stood first, one file turns them."""
    quiz, code = ranked(QUIZ), ranked(CODE)
    assert [p["id"] for p in quiz["picks"]] == [SMALL, CODER]
    assert [p["id"] for p in code["picks"]] == [CODER, SMALL]
    assert quiz["tried"]["before"] == code["tried"]["before"]
    (pair,) = quiz["tried"]["pairs"]
    assert pair["wins"] > pair["losses"] and pair["p"] > 0.05  # so few cases prove little


@pytest.mark.heavy
def test_a_model_grades_by_a_rubric(home: Path, capsys: pytest.CaptureFixture[str]):
    path = home / "mine.jsonl"
    path.write_text('{"prompt": "Say hello.", "judge": "The answer is a greeting.", "max_tokens": 16}')
    args = ["advise", "chat", "--installed", "--max-size", "0.2b", "--min-speed", "0", "--try", str(path)]
    assert cli_main.run([*args, "--judge", "qwen2.5-coder:0.5b", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["tried"]["models"]
    assert model["answers"][0]["text"] and model["answers"][0]["passed"] in (True, False)
    assert cli_main.run(["why", "smollm2:135m"]) == 0
    assert "on your cases" in capsys.readouterr().out
