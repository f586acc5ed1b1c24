"""Where trainings lie: the newest line of a folder counts, unless another process is still at work there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from freehold.adapt.registry import FILE, note, noted

OURS = {"pid": os.getpid(), "started": psutil.Process().create_time()}
GONE = {"pid": 0, "started": 1.0}


@pytest.mark.parametrize(
    ("first", "second", "verb", "running"),
    [(OURS, GONE, "finetune", True), (GONE, OURS, "align", True), (GONE, GONE, "align", False)],
)
def test_a_refused_command_does_not_take_a_running_ones_place(
    first: dict[str, float], second: dict[str, float], verb: str, running: bool, tmp_path: Path
):
    rows = [{"verb": "finetune", **first}, {"verb": "align", **second}]
    text = "".join(json.dumps({"out": "/there", "at": i, **row}) + "\n" for i, row in enumerate(rows))
    (tmp_path / FILE).write_text(text)
    (found,) = noted(tmp_path)
    assert (found.verb, found.running) == (verb, running)


def test_a_noted_folder_is_found_with_its_process(tmp_path: Path):
    note(tmp_path / "home", "distil", tmp_path / "out")
    (found,) = noted(tmp_path / "home")
    assert (found.verb, found.out, found.running) == ("distil", tmp_path / "out", True)
