"""A bar is reached by a measured lower bound of the model as it is now, or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.errors import ModelNotFound
from freehold.route.providers.contract import Provider, RemoteModel
from freehold.route.router.bar import (
    FRESH_S,
    RENTED_DAYS,
    BarResult,
    Bars,
    BarStore,
    MeasuredModel,
    file_digest,
    now_text,
    void,
)
from freehold.route.router.gateway import GatewayModel, QualityTask

NOW = 1_800_000_000.0
CODER = GatewayModel("coder", local="qwen2.5-coder:0.5b")
MEASURED = MeasuredModel("coder", "ab" * 32, "Q4_K_M", template="", system="", settings="")


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"prompt": "2+2?", "exact": "4"}\n')
    return path


def result(cases: Path, model: MeasuredModel = MEASURED, low: float = 0.87) -> BarResult:
    return BarResult(
        "support", model, str(cases), file_digest(cases), 240, 0.91, low, 0.95, "wilson", now_text(NOW)
    )


def bars(home: Path, model: MeasuredModel = MEASURED, now: float = NOW) -> Bars:
    return Bars(home, lambda _: model, lambda: now)


TASK = QualityTask("support", 0.85)


def test_lower_bound_decides_and_not_the_score(tmp_path: Path, cases: Path):
    BarStore(tmp_path).keep(result(cases))
    assert bars(tmp_path).passes(TASK, CODER)[0]
    passed, why = bars(tmp_path).passes(replace(TASK, bar=0.9), CODER)  # below the score, above the bound
    assert not passed and "0.870" in why and "0.9" in why


def test_model_without_a_result_does_not_pass_and_is_told_the_command(tmp_path: Path):
    passed, why = bars(tmp_path).passes(TASK, CODER)
    assert not passed and "freehold bar run support --model coder" in why


@pytest.mark.parametrize("changed", ["weights", "quantization", "template", "system", "settings"])
def test_result_is_void_when_the_model_changes(tmp_path: Path, cases: Path, changed: str):
    BarStore(tmp_path).keep(result(cases))
    passed, why = bars(tmp_path, replace(MEASURED, **{changed: "other"})).passes(TASK, CODER)
    assert not passed and "void" in why and "changed" in why


def test_result_is_void_when_the_task_file_changes_or_is_gone(cases: Path):
    kept = result(cases)
    cases.write_text(cases.read_text() + '{"prompt": "3+3?", "exact": "6"}\n')
    assert void(kept, MEASURED, NOW) == "its task file changed"
    cases.unlink()
    assert void(kept, MEASURED, NOW) == "its task file cannot be read"


def test_result_of_another_file_is_void_for_a_task_that_names_one(tmp_path: Path, cases: Path):
    BarStore(tmp_path).keep(result(cases))
    assert bars(tmp_path).passes(replace(TASK, file=str(cases)), CODER)[0]
    passed, why = bars(tmp_path).passes(replace(TASK, file=str(tmp_path / "other.jsonl")), CODER)
    assert not passed and "another task file" in why


def test_rented_model_expires_and_an_owned_one_does_not(cases: Path):
    later = NOW + (RENTED_DAYS + 1) * 86_400
    assert void(result(cases), MEASURED, later) == ""
    rented = replace(MEASURED, rented=True)
    assert "days old" in void(result(cases, rented), rented, later)
    assert void(result(cases, rented), rented, NOW + 86_400) == ""


def test_model_that_is_gone_does_not_pass(tmp_path: Path, cases: Path):
    BarStore(tmp_path).keep(result(cases))

    def gone(_: GatewayModel) -> MeasuredModel:
        raise ModelNotFound("qwen2.5-coder:0.5b is not downloaded")

    passed, why = Bars(tmp_path, gone, lambda: NOW).passes(TASK, CODER)
    assert not passed and "not downloaded" in why


def test_verdict_is_kept_for_a_while_and_then_seen_to_change(tmp_path: Path, cases: Path):
    BarStore(tmp_path).keep(result(cases))
    now = [NOW]
    asked = Bars(tmp_path, lambda _: MEASURED, lambda: now[0])
    assert asked.passes(TASK, CODER)[0]
    BarStore(tmp_path).keep(result(cases, low=0.5))
    assert asked.passes(TASK, CODER)[0]
    now[0] += FRESH_S
    assert not asked.passes(TASK, CODER)[0]


def test_results_are_private_and_a_damaged_one_counts_as_none(tmp_path: Path, cases: Path):
    old = os.umask(0)
    try:
        path = BarStore(tmp_path).keep(result(cases))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0
    assert BarStore(tmp_path).find("support", "coder") == result(cases)
    path.write_bytes(path.read_bytes()[:-20])
    assert BarStore(tmp_path).find("support", "coder") is None
    assert not bars(tmp_path).passes(TASK, CODER)[0]
    path.write_text('{"schema": 1, "low": 1.0, "score": 0.2, "high": 0.1}')
    assert BarStore(tmp_path).all() == []


def test_tasks_and_models_of_any_name_have_files_of_their_own(tmp_path: Path, cases: Path):
    kept = BarStore(tmp_path)
    names = ["a/b", "a--b", "../a", "a:b", "A"]
    paths = {kept.path(task, model) for task in names for model in names}
    assert len(paths) == len(names) ** 2
    assert all(path.parent == tmp_path / "bars" for path in paths)


def test_rented_model_is_named_by_provider_address_and_name(tmp_path: Path):
    from freehold.base.config import Settings
    from freehold.route.router.bar import Identities
    from freehold.run.store import Store

    provider = Provider("openai", "openai", "https://api.openai.com/v1")
    big = GatewayModel("big", remote=RemoteModel(provider, "gpt-6.2-sol"))
    found = Identities(Store(Settings(home=tmp_path))).of(big)
    assert found.rented and found.weights == "openai https://api.openai.com/v1 gpt-6.2-sol"
