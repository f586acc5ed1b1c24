"""A run's folder survives kills, full disks, other inputs and second processes, and shows no half result."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from freehold.adapt.run import RunFolder, model_digest, receipt
from freehold.adapt.training.trainee import arithmetic
from freehold.base.errors import StoreError, UsageError
from freehold.run.store.records import ModelRef

INPUTS = {"seed": 1, "base": "ab" * 32}

# Adds step to a sum until 40, and kills itself after a step where that is asked.
WORK = """
import os, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from freehold.adapt.run import RunFolder
out, die = Path(sys.argv[1]), int(sys.argv[2])
with RunFolder.open(out, "sum", {"seed": 1}) as run:
    kept = run.kept
    step, total = (kept.step, kept.arrays["total"]) if kept else (0, np.zeros(3, np.float32))
    while step < 40:
        step += 1
        total = total + np.random.default_rng((1, step)).standard_normal(3, np.float32)
        run.log({"step": step, "total": total.tolist()})
        if step == die:
            os.kill(os.getpid(), 9)
        if step % 4 == 0:
            run.keep(step, {"total": total}, {"note": "é"})
    run.path("weights.bin").write_bytes(total.tobytes())
    run.finish({"verb": "sum"})
"""


def work(out: Path, die: int) -> int:
    return subprocess.run([sys.executable, "-c", WORK, str(out), str(die)], check=False).returncode


@pytest.mark.heavy
def test_killed_run_gives_the_bits_and_lines_of_an_undisturbed_one(tmp_path: Path) -> None:
    assert work(tmp_path / "whole", 0) == 0
    for die in (3, 4, 17):
        assert work(tmp_path / "cut", die) == -signal.SIGKILL
        assert not (tmp_path / "cut").exists()
    assert work(tmp_path / "cut", 0) == 0
    for name in ("weights.bin", "steps.jsonl", "receipt.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [
        "receipt.json",
        "steps.jsonl",
        "weights.bin",
    ]


def begin(out: Path, inputs: dict[str, Any] = INPUTS, verb: str = "finetune", **options: bool) -> None:
    with RunFolder.open(out, verb, inputs, **options) as run:
        run.keep(1, {"w": np.ones(2, np.float32)}, {})


def test_other_inputs_are_refused_by_key_with_a_way_out_and_fresh_discards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out)
    with pytest.raises(UsageError, match="seed 1; now it is 2") as e:
        begin(out, INPUTS | {"seed": 2})
    assert "--fresh" in e.value.hint
    with pytest.raises(UsageError, match="unfinished finetune"):
        begin(out, verb="align")
    begin(out, INPUTS | {"seed": 2}, fresh=True)
    with RunFolder.open(out, "finetune", INPUTS | {"seed": 2}) as run:
        assert run.kept is not None and run.kept.step == 1


def test_what_differs_is_named_to_the_value_and_not_the_group_that_holds_it(tmp_path: Path) -> None:
    begin(tmp_path / "out", {"settings": {"rate": 0.1, "seed": 1}, "base": "a"})
    with pytest.raises(UsageError, match=r"settings\.seed 1; now it is 2$"):
        begin(tmp_path / "out", {"settings": {"rate": 0.1, "seed": 2}, "base": "a"})


def test_run_that_made_nothing_leaves_nothing_and_blocks_no_other(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder.open(tmp_path / "out", "align", INPUTS) as run:
        run.log({"step": 1})
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert work(tmp_path / "out", 3) == -signal.SIGKILL  # before its first checkpoint
    assert (tmp_path / ".out.part").exists()
    begin(tmp_path / "out", {"seed": 5})


def test_files_of_the_result_are_work_even_before_the_first_checkpoint(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "out", "distil", INPUTS) as run:
        run.path("answers.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="seed 1; now it is 2"):
        begin(tmp_path / "out", INPUTS | {"seed": 2}, "distil")


def test_a_result_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        begin(tmp_path / "out")


def test_a_second_run_of_one_result_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    with (
        RunFolder.open(tmp_path / "out", "finetune", INPUTS),
        pytest.raises(UsageError, match="another process"),
    ):
        begin(tmp_path / "out")
    begin(tmp_path / "out")


def test_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    out, held = tmp_path / "out", np.arange(4, dtype=np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with RunFolder.open(out, "finetune", INPUTS) as run:
            run.keep(1, {"w": held}, {})
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
            with pytest.raises(StoreError) as e:
                run.keep(2, {"w": np.zeros(1 << 20, np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in e.value.message and "free some space" in e.value.hint
    with RunFolder.open(out, "finetune", INPUTS) as run:
        assert run.kept is not None and run.kept.step == 1
        assert np.array_equal(run.kept.arrays["w"], held)


@pytest.mark.parametrize("name", ["run.json", "checkpoint.npz"])
def test_damaged_work_is_named_and_never_resumed(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    begin(out)
    path = tmp_path / ".out.part" / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StoreError, match="damaged run"):
        begin(out)
    begin(out, fresh=True)


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin(out)
    np.savez(tmp_path / ".out.part" / "checkpoint.npz", w=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(StoreError, match="damaged run"):
        begin(out)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"[]"),
        ("run.json", b"[" * 100_000),
        ("run.json", b'{"verb": "finetune", "inputs": 3}'),
        ("checkpoint.npz", b""),
        ("checkpoint.npz", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"),
        ("checkpoint.npz", {"step": "1", "lines": 0, "state": {}}),
        ("checkpoint.npz", {"step": 1, "lines": -1, "state": {}}),
        ("checkpoint.npz", {"step": 1, "lines": 0, "state": []}),
    ],
)
def test_planted_work_of_a_wrong_shape_is_named(tmp_path: Path, name: str, content: Any) -> None:
    out = tmp_path / "out"
    begin(out)
    path = tmp_path / ".out.part" / name
    if isinstance(content, dict):
        told = np.frombuffer(json.dumps(content).encode(), np.uint8)
        np.savez(path, **cast("dict[str, Any]", {"/state": told}))
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged run"):
        begin(out)
    begin(out, fresh=True)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_part_folder_that_is_a_link_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("as it was")
    (tmp_path / ".out.part").symlink_to(other)
    with pytest.raises(UsageError, match="is a link"):
        begin(tmp_path / "out", fresh=fresh)
    assert [p.name for p in other.iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["run.json", "run.json.new", "steps.jsonl", "lock", "checkpoint.npz.new"])
def test_a_link_in_the_part_folder_leads_nowhere(tmp_path: Path, name: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    begin(out)
    for target in (other, tmp_path / "none"):
        other.write_text("as it was")
        path = tmp_path / ".out.part" / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        if name != "lock":
            with pytest.raises(UsageError, match="is a link"):
                begin(out)
        begin(out, fresh=True)
        assert other.read_text() == "as it was"
        assert not (tmp_path / "none").exists()


def test_fresh_removes_a_link_to_a_folder_and_not_the_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").write_text("as it was")
    begin(tmp_path / "out")
    (tmp_path / ".out.part" / "a").symlink_to(other)
    begin(tmp_path / "out", fresh=True)
    assert (other / "kept").read_text() == "as it was"


def test_names_that_no_folder_can_take_are_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("nothing")
    for name in ("/", ".", "..", "", "new/..", "link"):
        with pytest.raises(UsageError):
            begin(Path(name))
    assert [p.name for p in tmp_path.iterdir()] == ["link"]
    begin(Path("new/../.hidden"))
    assert (tmp_path / "..hidden.part").is_dir()


def test_receipt_refuses_what_is_no_number_and_states_who_made_it(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "out", "finetune", INPUTS) as run, pytest.raises(ValueError):
        run.finish(receipt("finetune", INPUTS, loss=float("nan")))
    with RunFolder.open(tmp_path / "out", "finetune", INPUTS) as run:
        run.finish(receipt("finetune", INPUTS, loss=0.5))
    told = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert (told["verb"], told["inputs"], told["loss"]) == ("finetune", INPUTS, 0.5)
    assert told["freehold"] and told["cpu_seconds"] > 0


def test_a_users_file_that_changed_under_its_name_is_another_base(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    model = ModelRef("m", path, "gguf", "", 3, "user", "", "", (path,))
    before = model_digest(model)
    path.write_bytes(b"two")
    assert before == hashlib.sha256(b"one").hexdigest() != model_digest(model)
    assert model_digest(replace(model, digest="ab" * 32)) == "ab" * 32


def test_threads_and_versions_are_inputs_of_a_run() -> None:
    """Sums of floats follow from them; a run that continued with others would have neither's bits."""
    assert arithmetic(3)["threads"] == 3 and arithmetic(None)["threads"] >= 1
    assert set(arithmetic(1)) == {"freehold", "torch", "threads"}
