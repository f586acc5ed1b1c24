"""A process that ends at one model's file leaves the others judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from freehold.run.store import judging
from freehold.run.store.judging import JudgedFile, Judgement, Judgements, judge

# A judge that refuses every path but those that end it, by their names.
JUDGE = """\
import json, sys
rows = json.load(sys.stdin)
assert not any("deadly" in path for _, path, _ in rows)
print(json.dumps([["refused " + path, "", 1] for _, path, _ in rows]))
"""


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "COMMAND", (sys.executable, "-c", JUDGE))


def test_a_file_that_ends_its_judge_leaves_the_others_refused() -> None:
    found = judge([JudgedFile(path="a"), JudgedFile(path="deadly"), JudgedFile(path="b")])
    assert found == [Judgement("refused a", "", 1), Judgement(), Judgement("refused b", "", 1)]


def test_files_that_were_judged_beside_a_deadly_one_are_known_afterwards(tmp_path: Path) -> None:
    whole, deadly = tmp_path / "whole", tmp_path / "deadly"
    whole.touch()
    deadly.touch()
    judgements = Judgements()
    first = judgements.of([(whole, ""), (deadly, "")])
    assert [each.refused for each in first] == [f"refused {whole}", ""]
    assert judgements.of([(whole, "")]) == first[:1]
