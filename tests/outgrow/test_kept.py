"""Deployments are files that hold no secret, are whole or not there, and outlive a server."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.errors import StoreError
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.kept import KeptDeployment, as_json, folder, forget, keep, kept, of_json
from freehold.outgrow.options import DeployOptions
from tests.outgrow.plans import plan

ASKED = DeployOptions("qwen3:8b", replicas=2)


def test_plan_is_read_as_it_was_written() -> None:
    assert of_json(json.loads(json.dumps(as_json(plan()))), DeployPlan) == plan()


def test_deployment_is_kept_under_any_name(tmp_path: Path) -> None:
    names = ["qwen3:8b", "org/model:Q4", "../../etc/passwd", "a b", ".hidden", "größe"]
    for name in names:
        path = keep(tmp_path, KeptDeployment(name, plan(), replace(ASKED, fallback="smollm2:135m")))
        assert path.parent == folder(tmp_path)
        assert path.stat().st_mode & 0o777 == 0o600
    found, damaged = kept(tmp_path)
    assert damaged == []
    assert sorted(each.name for each in found) == sorted(names)
    assert all(each.plan == plan() and each.asked.fallback == "smollm2:135m" for each in found)
    assert folder(tmp_path).stat().st_mode & 0o777 == 0o700


def test_later_plan_replaces_the_earlier_one(tmp_path: Path) -> None:
    keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))
    keep(tmp_path, KeptDeployment("qwen", replace(plan(), replicas=3), ASKED))
    (found,) = kept(tmp_path)[0]
    assert found.plan.replicas == 3
    assert [p.name for p in folder(tmp_path).iterdir()] == ["qwen.json"]


def test_stopped_deployment_is_forgotten(tmp_path: Path) -> None:
    keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))
    assert forget(tmp_path, "qwen")
    assert not forget(tmp_path, "qwen")
    assert kept(tmp_path) == ([], [])


@pytest.mark.parametrize("body", ["", "{", "[]", '{"name": "x"}', '{"name": 1, "plan": {}}'])
def test_damaged_file_is_named_and_left(tmp_path: Path, body: str) -> None:
    keep(tmp_path, KeptDeployment("good", plan(), ASKED))
    (folder(tmp_path) / "bad.json").write_text(body, encoding="utf-8")
    found, damaged = kept(tmp_path)
    assert [each.name for each in found] == ["good"]
    assert len(damaged) == 1
    assert "bad.json" in damaged[0]
    assert (folder(tmp_path) / "bad.json").exists()


def test_file_of_another_version_is_not_read_as_this_one(tmp_path: Path) -> None:
    keep(tmp_path, replace(KeptDeployment("qwen", plan(), ASKED), schema=2))
    found, damaged = kept(tmp_path)
    assert found == []
    assert "schema 2" in damaged[0]


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "deployments").write_text("a file\n", encoding="utf-8")
    with pytest.raises(StoreError, match="deployments"):
        keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))


def test_file_holds_the_reference_of_a_secret_only(tmp_path: Path) -> None:
    path = keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))
    assert '"variable": "VLLM_API_KEY"' in path.read_text(encoding="utf-8")
    assert '"source": "random"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_file_that_others_may_write_to_starts_nothing(tmp_path: Path, mode: int) -> None:
    keep(tmp_path, KeptDeployment("qwen", plan(), ASKED)).chmod(mode)
    found, damaged = kept(tmp_path)
    assert not found and "others than you may write to it" in damaged[0]


def test_copy_under_another_name_and_a_name_that_does_not_print_start_nothing(tmp_path: Path) -> None:
    path = keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))
    (folder(tmp_path) / "copy.json").write_bytes(path.read_bytes())
    (folder(tmp_path) / "copy.json").chmod(0o600)
    keep(tmp_path, KeptDeployment("a\x1b]0;b", plan(), ASKED))
    found, damaged = kept(tmp_path)
    assert [each.name for each in found] == ["qwen"]
    assert "whose file is qwen.json" in damaged[1] and "do not print" in damaged[0]


def test_what_is_not_a_file_is_not_read(tmp_path: Path) -> None:
    keep(tmp_path, KeptDeployment("qwen", plan(), ASKED))
    os.mkfifo(folder(tmp_path) / "pipe.json", 0o600)
    (folder(tmp_path) / "folder.json").mkdir(mode=0o700)
    found, damaged = kept(tmp_path)
    assert [each.name for each in found] == ["qwen"] and len(damaged) == 2
    assert all("it is not a file of at most" in each for each in damaged)
