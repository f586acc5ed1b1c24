"""The way of one token is short and is where docs/design/path.md says it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import freehold
from freehold.cli import main
from freehold.run.engine.runner import ModelRunner
from tests.vectors.files import write_gguf

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "design" / "path.md").read_text(encoding="utf-8")
SOURCES = Path(freehold.__file__).parent


def files_above(frame) -> list[str]:
    """Return our own files on the stack above `frame`, outermost first, each once."""
    names = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCES) and path.name not in names:
            names.append(path.name)
        frame = frame.f_back
    return names[::-1]


def test_seven_files_from_the_command_to_the_kernel(tmp_path: Path, monkeypatch, capsys):
    stacks = []
    run = ModelRunner.run

    def seen(self, *args, **options):
        stacks.append([*files_above(sys._getframe(1)), "runner.py"])
        return run(self, *args, **options)

    monkeypatch.setattr(ModelRunner, "run", seen)
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path))
    tiny = str(write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0"))
    assert main.run(["run", tiny, "Hi", "--max-tokens", "3", "--seed", "1"]) == 0
    in_python = ["run.py", "answering.py", "sequence.py", "engine.py", "runner.py"]
    assert stacks and all(stack == ["main.py", *in_python] for stack in stacks)
    seven = [*in_python, "plan.cpp", "step.cpp"]
    assert len(seven) == 7 and ", ".join(f"`{name}`" for name in seven) in PAGE


def test_every_file_the_page_names_exists():
    named = re.findall(r"`((?:src|csrc)/[\w./-]+\.(?:py|cpp|inl|h))`", PAGE)
    assert len(named) > 30
    for name in named:
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("room", ["cli", "run/local", "run/engine", "serve/http", "serve/worker"])
def test_the_page_leads_through_every_room_on_the_way(room: str):
    assert f"src/freehold/{room}/" in PAGE
