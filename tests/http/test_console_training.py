"""Trainings of this home: receipts as they are, curves of their steps, and damage that is named and not fatal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from freehold.adapt import registry
from freehold.adapt.registry import note, noted
from freehold.adapt.run import RunFolder, receipt
from freehold.base.config import load_settings
from freehold.cli.eval import command as evaluate
from freehold.serve.http.core.keys import Ring
from tests.http.conftest import start
from tests.http.test_door import key, secret

URL = "/console/api/training"
BASE = {"base": {"name": "smollm2:135m", "sha256": "0" * 64}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    keys = Ring([key("ann", models=("fake:*",)), key("all"), key("root", kind="admin")])
    running = start(folder, offline=True, keys=keys)
    yield running
    running.end()


@pytest.fixture
def home(server):
    found = server.store.settings.home
    found.mkdir(exist_ok=True)
    (found / registry.FILE).unlink(missing_ok=True)
    return found


def told(server, path="", name="root"):
    return server.client.get(URL + path, headers={"Authorization": f"Bearer {secret(name)}"})


def trained(home: Path, out: Path, *, finish: bool = True, steps: int = 6) -> Path:
    note(home, "reinforce", out)
    with RunFolder.open(out, "reinforce", BASE) as run:
        for step in range(1, steps + 1):
            line = {
                "step": step,
                "steps": 6,
                "loss": 1 / step,
                "reward": step / 6,
                "mismatch": {"mean": 0.02},
            }
            run.log(line | ({"rare": 1.0} if step == 2 else {}))
        run.path("adapter.bin").write_bytes(b"x")
        if finish:
            run.finish(receipt("reinforce", BASE, before_after={"p": 0.01}))
    return out


def test_a_receipt_is_shown_as_it_is_with_the_curves_of_its_steps(server, home, tmp_path):
    out = trained(home, tmp_path / "mine")
    (row,) = told(server).json()["runs"]
    assert (row["name"], row["verb"], row["state"], row["base"]) == (
        "mine",
        "reinforce",
        "done",
        "smollm2:135m",
    )
    assert row["step"] == row["steps"] == 6 and row["made_at"] and row["path"] is None
    found = told(server, f"/{row['id']}").json()
    assert found["receipt"] == json.loads((out / "receipt.json").read_text())
    assert found["curves"]["reward"][-1] == [6, 1.0] and found["curves"]["mismatch.mean"][0] == [1, 0.02]
    assert "rare" not in found["curves"] and found["bad_lines"] == 0


def test_the_owner_alone_is_told_where_it_lies(server, home, tmp_path):
    out = trained(home, tmp_path / "mine")
    assert server.owner.get(URL).json()["runs"][0]["path"] == str(out)


def test_work_in_progress_is_running_while_its_process_is_there_and_stopped_after(
    server, home, tmp_path, monkeypatch
):
    trained(home, tmp_path / "half", finish=False, steps=3)
    (row,) = told(server).json()["runs"]
    assert (row["state"], row["step"], row["steps"]) == ("running", 3, 6)
    found = told(server, f"/{row['id']}").json()
    assert found["receipt"] is None and found["inputs"] == BASE and len(found["curves"]["loss"]) == 3
    monkeypatch.setattr(registry, "_started", lambda pid: 1.0)
    assert told(server).json()["runs"][0]["state"] == "stopped"


@pytest.mark.parametrize(
    "damage", [b"{", b"[1]", b'{"inputs": 3}', b'{"cpu_seconds": NaN}', b"\xff\xfe", b"[" * 100_000]
)
def test_a_damaged_receipt_is_named_and_the_others_are_shown(server, home, tmp_path, damage):
    trained(home, tmp_path / "good")
    bad = trained(home, tmp_path / "bad")
    (bad / "receipt.json").write_bytes(damage)
    with (bad / "steps.jsonl").open("ab") as file:
        file.write(b'{"step": 7, "loss"\nnonsense\n')
    first, second = told(server).json()["runs"]
    assert (first["name"], first["state"]) == ("bad", "damaged") and first["trouble"]
    assert (second["name"], second["state"]) == ("good", "done")
    found = told(server, f"/{first['id']}").json()
    assert found["receipt"] is None and found["bad_lines"] == 2 and len(found["curves"]["loss"]) == 6


def test_a_scoped_key_and_an_unknown_id_are_refused(server, home):
    assert told(server, name="ann").status_code == 403 and told(server, name="all").status_code == 200
    assert told(server, "/0123456789abcdef").status_code == 404
    assert told(server, "/..%2f..%2fetc").status_code == 404


def test_a_folder_is_listed_once_and_one_that_is_gone_not_at_all(server, home, tmp_path):
    out = trained(home, tmp_path / "mine")
    note(home, "reinforce", out)
    note(home, "finetune", tmp_path / "gone")
    with (home / registry.FILE).open("a") as file:
        file.write("damaged\n{}\n")
    assert len(noted(home)) == 2 and len(told(server).json()["runs"]) == 1


def results(folder: Path, model: str, marks: list[float]) -> None:
    """Write what `eval -o` does of one task."""
    folder = folder / model
    folder.mkdir(parents=True)
    mean = {"alias": "sums", "acc,none": sum(marks) / len(marks), "acc_stderr,none": 0.1}
    whole = {
        "results": {"sums": mean},
        "configs": {"sums": {"task": "sums", "metric_list": [{"metric": "acc"}]}},
        "higher_is_better": {"sums": {"acc": True}},
        "n-samples": {"sums": {"original": len(marks), "effective": len(marks)}},
        "date": 1.7e9,
        "model_name": model,
    }
    (folder / "results_2026-01-01T00-00-00.0.json").write_text(json.dumps(whole))
    rows = [
        json.dumps(
            {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": f"t{i}", "acc": mark}
        )
        for i, mark in enumerate(marks)
    ]
    (folder / "samples_sums_2026-01-01T00-00-00.0.jsonl").write_text("\n".join(rows) + "\n")


@pytest.mark.heavy
def test_evaluations_are_paired_as_the_command_line_pairs_them(server, home, tmp_path):
    for name, marks in (("one", [1.0, 1.0, 0.0, 1.0]), ("two", [0.0, 1.0, 0.0, 0.0])):
        results(tmp_path / name, name, marks)
        note(home, "eval", tmp_path / name)
    rows = {row["model"]: row for row in told(server).json()["evals"]}
    assert rows["one"]["tasks"] == [{"task": "sums", "metric": "acc", "value": 0.75, "items": 4}]
    ids = f"one={rows['one']['id']}&other={rows['two']['id']}"
    answer = told(server, f"/compare?{ids}")
    settings = load_settings({"FREEHOLD_HOME": str(home)})
    args = ["--compare", str(tmp_path / "one" / "one"), str(tmp_path / "two" / "two"), "--json"]
    want = CliRunner().invoke(evaluate, args, obj=settings, standalone_mode=False).stdout
    assert answer.status_code == 200 and answer.text == want
    assert told(server, "/compare?one=x&other=y").status_code == 404
