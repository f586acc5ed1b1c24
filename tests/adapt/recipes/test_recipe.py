"""recipe.toml: what it says, the order of its stages, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.recipes.recipe import BadRecipe, ModelRecipe, read_recipe
from freehold.adapt.recipes.verbs import VERBS, key_name
from freehold.base.errors import UsageError
from freehold.base.options import options_of

GOOD = """
base = "tiny"

[rewards]
verb = "reinforce"
from = "examples"
reward = "rg:needle_haystack"
steps = 60
lr = 3e-4
batch = 4
gate = {data = "unseen.jsonl", better_than = "examples", p = 0.01, forgets_at_most = 2}

[examples]
verb = "finetune"
data = "cold.jsonl"
rank = 8

[small]
verb = "quantize"
target_bytes = "40MB"
gate = {kld = 0.05}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cold", "unseen"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "exact": "x"}))
    return tmp_path


def read(folder: Path, text: str) -> ModelRecipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def test_stages_come_after_those_that_they_need(folder: Path):
    recipe = read(folder, GOOD)
    assert [*recipe.stages] == ["examples", "rewards", "small"]
    assert [each.name for each in recipe.until("rewards")] == ["examples", "rewards"]
    assert [each.name for each in recipe.above(recipe.stages["rewards"])] == ["rewards", "examples"]


def test_keys_are_the_options_of_the_verb(folder: Path):
    recipe = read(folder, GOOD)
    rewards, examples = recipe.stages["rewards"], recipe.stages["examples"]
    assert (rewards.settings.steps, rewards.settings.rate, rewards.settings.prompts) == (60, 3e-4, 4)
    assert (examples.settings.rank, examples.settings.alpha) == (8, 16.0)
    assert examples.files.data == folder / "cold.jsonl"
    assert rewards.gate is not None and (rewards.gate.p, rewards.gate.forgets_at_most) == (0.01, 2)
    assert recipe.stages["small"].settings.target_bytes == 40_000_000


def test_no_two_options_of_a_verb_have_one_name():
    for verb in VERBS.values():
        names = [key_name(kind, each) for kind in (verb.files, verb.settings) for each in options_of(kind)]
        assert len(names) == len({*names, "verb", "from", "continue", "gate"}) - 4, verb.name


@pytest.mark.parametrize(
    ("change", "to", "line", "message"),
    [
        ('from = "examples"', 'from = "rewards"', 6, "in a circle: rewards -> rewards"),
        ('from = "examples"', 'from = "exampels"', 6, 'there is no stage "exampels"'),
        ('data = "cold.jsonl"', 'data = "warm.jsonl"', 15, 'there is no file "warm.jsonl"'),
        ("rank = 8", "rank = 0", 16, "0 is outside the range: 1 to 512"),
        ("rank = 8", "ranks = 8", 16, "unknown key"),
        ("steps = 60", "", 4, "steps is missing"),
        ('verb = "finetune"', 'verb = "teach"', 14, '"teach" is not a known verb'),
        ("p = 0.01", "p = 0.9", 11, "0.9 is outside the range"),
        ('better_than = "examples"', 'better_than = "exam"', 11, 'there is no stage "exam"'),
        ("gate = {kld = 0.05}", "gate = {}", 21, "the gate requires nothing"),
        ("gate = {kld = 0.05}", "gate = {forgets_at_most = 1}", 21, "quantize does not train"),
        ('data = "unseen.jsonl", ', "", 11, "the gate has no items"),
        ('"40MB"', '"forty"', 20, '"forty" is not a size'),
        ('base = "tiny"', "", 0, "the recipe has no base"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(folder: Path, change: str, to: str, line: int, message: str):
    assert change in GOOD
    with pytest.raises(BadRecipe) as refusal:
        read(folder, GOOD.replace(change, to, 1))
    assert message in refusal.value.message and "\n" not in refusal.value.message
    assert refusal.value.mistakes[0].line == line and refusal.value.hint


def test_a_circle_over_a_gate_is_named(folder: Path):
    circle = GOOD.replace(
        'data = "cold.jsonl"', 'data = "cold.jsonl"\ngate = {data = "unseen.jsonl", better_than = "rewards"}'
    )
    with pytest.raises(BadRecipe, match="rewards -> examples -> rewards"):
        read(folder, circle)


def test_a_stage_that_trains_nothing_has_no_adapter_to_continue(folder: Path):
    more = '[more]\nverb = "finetune"\nfrom = "small"\ndata = "cold.jsonl"\ncontinue = true\n'
    with pytest.raises(BadRecipe, match="small has no adapter to continue"):
        read(folder, GOOD + more)


@pytest.mark.parametrize(
    "text", ["", "base = 3", "[", "base = 'a'\n[x]\n", "base = 'a'\n[x.y]\nz = 1\n", "\0"]
)
def test_what_is_not_a_recipe_is_refused(folder: Path, text: str):
    with pytest.raises(UsageError) as refusal:
        read(folder, text)
    assert refusal.value.hint or "mistakes" in refusal.value.message


def test_an_unknown_target_gets_the_nearest(folder: Path):
    with pytest.raises(UsageError, match="no stage 'reward'") as refusal:
        read(folder, GOOD).until("reward")
    assert "rewards" in refusal.value.hint
