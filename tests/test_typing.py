"""Strict type checkers accept a user's script, and refuse one that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "freehold"
RIGHT = """
import asyncio
from pydantic import BaseModel
import freehold

class Person(BaseModel):
    name: str

def threads() -> None:
    print(freehold.pull("smollm2:135m").path, [m.name for m in freehold.list()])
    with freehold.load("smollm2:135m", context=512) as llm:
        one: freehold.Completion = llm.generate("a", max_tokens=3, temperature=0.5)
        batch: list[freehold.Completion] = llm.generate([f"{i}" for i in range(3)], stop=["x"])
        ids: list[freehold.Completion] = llm.generate([[1, 2], [3]])
        person = Person.model_validate_json(llm.chat("Hi", format=Person).text)
        model: freehold.ChatModel = llm
        print(one, batch, ids, person.name, model.name)

async def tasks() -> None:
    async with await freehold.AsyncLLM.load("smollm2:135m", context=512) as llm:
        both = await asyncio.gather(llm.chat("Hi", seed=1), llm.generate("a", seed=2))
        print(both[0].text, (await llm.generate(["a", "b"]))[1].text)
        async for chunk in llm.stream([{"role": "user", "content": "Hi"}], max_tokens=5):
            print(chunk.text)
"""
WRONG = """
import freehold

with freehold.load("x") as llm:
    llm.chat(3)
    llm.chat("x", max_tokns=3)
    x: int = llm.generate("a")
    llm.pump(3)
    freehold.pull("x", progres=True)
"""


def documented_examples() -> list[str]:
    section = (
        (ROOT / "docs" / "guides" / "start.md").read_text(encoding="utf-8").split("## From Python", 1)[1]
    )
    return [block.split("```", 1)[0] for block in section.split("\n## ", 1)[0].split("```python")[1:]]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    for number, text in enumerate(documented_examples()):
        (tmp_path / f"documented{number}.py").write_text(text, encoding="utf-8")
    (tmp_path / "right.py").write_text(RIGHT, encoding="utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    return tmp_path


def test_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.heavy
@pytest.mark.long
def test_mypy_strict(script: Path):
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir=cache"]
    done = subprocess.run(
        [*command, *sorted(p.name for p in script.glob("*.py"))],
        cwd=script,
        env={**os.environ, "MYPYPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert {line.split(":")[0] for line in errors} == {"wrong.py"}, done.stdout + done.stderr
    assert sorted(int(line.split(":")[1]) for line in errors) == [5, 6, 7, 8, 9]


@pytest.mark.heavy
@pytest.mark.long
def test_pyright_strict(script: Path):
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(PACKAGE.parent)]}
    (script / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=script, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [
        (Path(d["file"]).name, d["range"]["start"]["line"] + 1) for d in found if d["severity"] == "error"
    ]
    assert {name for name, _ in errors} == {"wrong.py"}, found
    assert {line for _, line in errors} >= {5, 6, 7, 8, 9}
