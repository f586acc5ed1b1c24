"""Building: stages run when they are out of date, gates stop a build, kills lose nothing; on a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.recipes.build import Builder, BuildWatch, GateNotMet, StageReport
from freehold.adapt.recipes.recipe import read_recipe
from freehold.adapt.run import cpu_seconds
from freehold.base.config import Settings
from freehold.base.errors import FreeholdError, StoreError, UsageError
from freehold.choose.advisor.verdict import Facts
from freehold.run.models.tiny import make
from freehold.run.store import Store
from tests.adapt.test_finetune import few_facts, same_bits, written
from tests.adapt.test_fuse import files_of_at_most

pytest.importorskip("torch")
__all__ = ["few_facts"]

RECIPE = """
base = "{model}"

[examples]
verb = "finetune"
data = "cold.jsonl"
lr = 2e-2
rank = 4
batch = 4
epochs = 8
replay = 1
max_length = 128
threads = 1
gate = {{data = "unseen.jsonl", better_than = "base", p = 0.05}}

[more]
verb = "finetune"
from = "examples"
data = "more.jsonl"
lr = 2e-2
rank = 4
batch = 4
epochs = 1
replay = 0
max_length = 128
threads = 1
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write_gguf(make.config("llama"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def recipe(model: Path, tmp_path: Path) -> Path:
    written(tmp_path / "cold.jsonl", [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(12)])
    written(tmp_path / "more.jsonl", [{"prompt": f"m {i}?", "completion": "+q."} for i in range(4)])
    written(tmp_path / "unseen.jsonl", [{"prompt": f"n {i}?", "exact": "=k!"} for i in range(20, 32)])
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=model))
    return path


def builder(recipe: Path, watch: BuildWatch | None = None) -> Builder:
    settings = Settings(home=recipe.parent / "home")
    out = recipe.parent / "out"
    return Builder(read_recipe(recipe), out, settings, Store(settings), Facts(), watch or BuildWatch())


def changed(recipe: Path, before: str, after: str) -> None:
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after, 1))


def states(reports: list[StageReport]) -> dict[str, str]:
    return {each.name: each.state for each in reports}


def test_a_recipe_is_built_once_and_then_only_what_changed(recipe: Path):
    reports = builder(recipe).build()
    assert states(reports) == {"examples": "made", "more": "made"}
    gate = reports[0].gate
    assert gate is not None and gate.passed and gate.figures["share"] == 1.0 and gate.figures["other"] == 0.0
    assert (recipe.parent / "out" / "more" / "receipt.json").is_file()
    chain = json.loads((recipe.parent / "out" / "more" / "receipt.json").read_text())["chain"]
    assert chain[0]["digest"] == reports[0].digest

    assert states(builder(recipe).build()) == {"examples": "kept", "more": "kept"}
    assert [each.why for each in builder(recipe).plan()] == ["", ""]

    changed(recipe, "epochs = 1", "epochs = 2")
    assert [each.why for each in builder(recipe).plan()] == ["", "changed: epochs"]
    written(recipe.parent / "cold.jsonl", [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(13)])
    plan = builder(recipe).plan()
    assert [each.why for each in plan] == ["changed: data", "its parent examples runs first"]
    assert plan[0].gate and plan[1].out is None

    before = reports[0].out
    written(recipe.parent / "cold.jsonl", [{"prompt": f"n {i}?", "completion": "=k!"} for i in range(12)])
    changed(recipe, "epochs = 2", "epochs = 1")
    again = builder(recipe).build()  # changed back: the earlier results are there
    assert states(again) == {"examples": "kept", "more": "kept"} and again[0].out == before


def test_a_gate_that_is_not_met_stops_the_build_with_its_figures(recipe: Path):
    changed(recipe, "epochs = 8", "epochs = 1")
    changed(recipe, "lr = 2e-2", "lr = 1e-9")
    with pytest.raises(
        GateNotMet, match=r"examples does not meet its gate: 0.0% of 12 items, base 0.0%"
    ) as stop:
        builder(recipe).build()
    assert "\n" not in stop.value.message and stop.value.hint
    out = recipe.parent / "out"
    assert not (out / "examples").exists() and not list(out.glob("more-*"))
    (line,) = (json.loads(line) for line in (out / "gates.jsonl").read_text().splitlines())
    assert line["look"] == 1
    # Another result on the same items is another look, and the same result is not.
    with pytest.raises(GateNotMet):
        builder(recipe).build()
    changed(recipe, "lr = 1e-9", "lr = 2e-9")
    with pytest.raises(GateNotMet, match="look 2"):
        builder(recipe).build()


def test_items_that_are_trained_on_are_refused_before_anything_runs(recipe: Path):
    items = [{"prompt": f"n {i}?", "exact": "=k!"} for i in (3, 20, 21)]
    written(recipe.parent / "unseen.jsonl", items)
    with pytest.raises(UsageError, match=r"1 of 3 items are trained on by examples \(items 1\)"):
        builder(recipe).build()
    changed(recipe, '"unseen.jsonl"', '"cold.jsonl"')
    with pytest.raises(UsageError, match=r"cold\.jsonl is trained on by examples"):
        builder(recipe).build()
    assert not list((recipe.parent / "out").glob("examples*"))


def test_a_result_that_was_edited_is_refused(recipe: Path):
    out = builder(recipe).build("examples")[0].out
    path = out / "adapter_model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for call in (builder(recipe).plan, builder(recipe).build):
        with pytest.raises(UsageError, match="was changed after it was made") as refusal:
            call()
        assert "\n" not in refusal.value.message and "delete it" in refusal.value.hint


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nothing/like-it:7b", "nothing/like-it:7b"),
        ("{folder}/none.gguf", "none.gguf"),
        ("{folder}/tiny.gguf+{folder}/none", "none"),
        ("{folder}/tiny.gguf+{folder}/edited", "was changed after it was made"),
    ],
)
def test_a_base_that_is_missing_or_was_edited_is_one_line_and_leaves_no_result(
    recipe: Path, model: Path, base: str, message: str
):
    folder = recipe.parent
    if "edited" in base:
        out = builder(recipe).build("examples")[0].out
        shutil.copytree(out, folder / "edited")
        shutil.rmtree(folder / "out")
        raw = bytearray((folder / "edited" / "adapter_model.safetensors").read_bytes())
        raw[-1] ^= 1
        (folder / "edited" / "adapter_model.safetensors").write_bytes(raw)
    shutil.copy(model, folder / "tiny.gguf")
    changed(recipe, f'base = "{model}"', f'base = "{base.format(folder=folder)}"')
    for call in (builder(recipe).plan, builder(recipe).build):
        with pytest.raises(FreeholdError, match=message) as refusal:
            call()
        assert "\n" not in refusal.value.message and refusal.value.hint
    assert {each.name for each in folder.glob("out/*")} <= {".lock"}


def test_a_teacher_of_other_tokens_stops_the_build_and_keeps_what_was_made(recipe: Path):
    teacher = make.write_gguf(make.config("llama"), recipe.parent / "teacher.gguf")
    *_, word = (each.encode() for each in make.vocabulary() if len(each.encode()) > 2)
    size = len(word).to_bytes(8, "little")
    raw = teacher.read_bytes()
    assert size + word in raw
    teacher.write_bytes(raw.replace(size + word, size + word[:-1] + b"~", 1))
    distil = f'[small]\nverb = "distil"\nfrom = "examples"\nteacher = "{teacher}"\nprompts = "more.jsonl"\n'
    recipe.write_text(recipe.read_text() + distil + "on_policy = true\n")
    with pytest.raises(UsageError, match="token") as refusal:
        builder(recipe).build("small")
    assert "\n" not in refusal.value.message and refusal.value.hint
    assert states(builder(recipe).build("examples")) == {"examples": "kept"}
    assert not list((recipe.parent / "out").glob("*small*"))


def test_a_stages_seconds_are_its_own(recipe: Path):
    before = cpu_seconds()
    reports = builder(recipe).build()
    assert all(each.cpu_seconds > 0 for each in reports)
    assert sum(each.cpu_seconds for each in reports) <= cpu_seconds() - before + 0.02 * len(reports)


def test_a_disk_that_fills_up_in_a_stage_is_one_line_and_the_build_continues(recipe: Path, tmp_path: Path):
    whole = builder(recipe).build("examples")[0]
    os.rename(recipe.parent / "out", tmp_path / "whole")
    with files_of_at_most(2_000), pytest.raises(StoreError, match="cannot be written") as refusal:
        builder(recipe).build("examples")
    assert "\n" not in refusal.value.message and "then continues" in refusal.value.hint
    assert not (recipe.parent / "out" / "examples").exists()
    again = builder(recipe).build("examples")[0]
    assert same_bits(tmp_path / "whole" / whole.out.name, again.out)


def test_two_builds_at_once_are_refused(recipe: Path):
    errors: list[FreeholdError] = []

    def second(planned: Any) -> None:
        try:
            builder(recipe).build()
        except FreeholdError as e:
            errors.append(e)

    builder(recipe, BuildWatch(begins=second)).build("examples")
    assert "another process works on" in errors[0].message


def test_a_full_disk_is_one_line_and_the_build_continues(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    import freehold.adapt.recipes.build as module

    real = os.fsync

    def full(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("gates.jsonl"):
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(StoreError, match=r"gates\.jsonl cannot be written: No space left") as refusal:
        builder(recipe).build("examples")
    assert "then continues" in refusal.value.hint
    monkeypatch.undo()
    assert states(builder(recipe).build("examples")) == {"examples": "kept"}


def test_a_build_interrupted_in_a_stage_makes_the_same_bits(recipe: Path, tmp_path: Path):
    whole = builder(recipe).build()

    def stop(stage: str, row: Mapping[str, Any]) -> None:
        if stage == "more" or row["step"] == 5:
            raise KeyboardInterrupt

    os.rename(recipe.parent / "out", tmp_path / "whole")
    for _ in range(2):  # once in each stage
        with pytest.raises(KeyboardInterrupt):
            builder(recipe, BuildWatch(step=stop)).build()
    plan = builder(recipe).plan()
    assert plan[1].why == "it was interrupted, and continues" or plan[0].why
    again = builder(recipe).build()
    for one, other in zip(whole, again, strict=True):
        assert same_bits(tmp_path / "whole" / one.out.name, other.out)


@pytest.mark.heavy
def test_a_build_that_is_killed_continues_to_the_same_bits(recipe: Path, model: Path, tmp_path: Path):
    reports = builder(recipe).build()
    os.rename(recipe.parent / "out", tmp_path / "whole")
    code = (
        "import sys; from tests.adapt.recipes.test_build import builder, BuildWatch; from pathlib import Path\n"
        "import freehold.adapt.teaching as t, freehold.adapt.loop as l\n"
        "t.FACTS, t.WINDOWS, t.QUESTIONS, t.OPENINGS, l.KEEP_S = t.FACTS[:3], 2, ('Why?', 'Who?'), ('The', 'A'), 0\n"
        "builder(Path(sys.argv[1]), BuildWatch(step=lambda s, r: print(s, r['step'], flush=True))).build()\n"
    )
    for last in ("examples 3", "more 1"):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(recipe)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip() == last:
                    child.send_signal(signal.SIGKILL)
                    break
    for one, other in zip(reports, builder(recipe).build(), strict=True):
        assert same_bits(tmp_path / "whole" / one.out.name, other.out)


def test_a_stage_of_figures_alone_passes_its_parent_on(recipe: Path):
    text = recipe.read_text()
    recipe.write_text(text + '\n[score]\nverb = "eval"\nfrom = "examples"\ndata = "unseen.jsonl"\n')
    reports = builder(recipe).build("score")
    table = json.loads((reports[1].out / "results.json").read_text())
    assert table["metrics"]["acc"]["items"] == 12 and table["metrics"]["acc"]["mid"] == 1.0
    assert reports[1].digest == reports[0].digest
