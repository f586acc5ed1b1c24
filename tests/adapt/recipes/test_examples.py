"""The recipes of examples/, from their data to their last file, in short form on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from freehold.base.platforms import can_confine
from freehold.run.models.tiny import make
from tests.adapt.recipes.test_build import builder
from tests.adapt.test_finetune import few_facts
from tests.providers.standin import StandIn
from tests.providers.standin.script import Answer

pytest.importorskip("torch")
__all__ = ["few_facts"]
EXAMPLES = Path(__file__).parents[3] / "examples"
ALL = sorted(path.parent.name for path in EXAMPLES.glob("*/recipe.toml"))
SHORT = {"steps": "1", "epochs": "1", "unseen": "2", "max_tokens": "4"}


def shortened(name: str, folder: Path) -> Path:
    """Copy an example; its base is tiny, its gates ask for what a random model has, and it trains a step or few."""
    shutil.copytree(EXAMPLES / name, folder / name)
    path = folder / name / "recipe.toml"
    tiny = make.write_gguf(make.config("qwen2"), folder / "tiny.gguf")
    text = (
        path.read_text()
        .replace('"smollm2:135m"', f'"{tiny}"')
        .replace("continue = true\n", "")
        .replace('"T3"', '"Q8_0"')
    )
    text = re.sub(r"(?m)^gate = .*kld.*$", "gate = { kld = 5.0 }", text)
    text = re.sub(r"(?m)^gate = .*data.*$", "", text)
    text = text.replace('verb = "fuse"', 'verb = "fuse"\nuntil = 1.0')
    for key, value in SHORT.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    verb = 'verb = "reinforce"'
    path.write_text(
        text.replace(verb, f"{verb}\nbatch = 2\ngroup = 2\nallow_gameable = true\nmost_mismatch = 5.0")
    )
    return path


def data_of(recipe: Path) -> None:
    """Write an example's data as its first line says; a stand-in is the rented teacher. Then few lines of each."""
    with StandIn() as teacher:
        teacher.behave = lambda received: Answer(pieces=('{"name": "Ann", "age": 3, "city": "Rome"}',))
        asked = [teacher.url("openai"), "gpt-test"] if "extract" in recipe.parent.name else []
        command = [sys.executable, str(recipe.parent / "data.py"), *asked]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "no_proxy": "*"})
    for path in recipe.parent.glob("*.jsonl"):
        lines = path.read_text().splitlines()
        assert len(lines) >= 30 and all(json.loads(line) for line in lines)
        path.write_text("\n".join(lines[:8]))


def test_there_are_three_examples():
    assert ALL == ["extractor", "r1", "style"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ALL)
def test_an_example_is_built_to_its_last_stage(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freehold.adapt.fuse.WINDOW", 128)  # a tiny model was made for 512 tokens
    if name == "r1":
        pytest.importorskip("reasoning_gym")
        if not can_confine():
            pytest.skip("rewards need a kernel that confines processes")
    recipe = shortened(name, tmp_path)
    data_of(recipe)
    reports = builder(recipe).build()
    assert all(each.gate is None or each.gate.passed for each in reports)
    assert (recipe.parent / "out" / reports[-1].name / "receipt.json").is_file()
    assert [each.why for each in builder(recipe).plan()] == [""] * len(reports)
