"""The licence of a base and of a teacher, asked before a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from freehold.adapt.licences import base_licence, licensed, notes, teaching
from freehold.base.errors import UsageError
from freehold.choose.advisor.verdict import Facts
from freehold.run.store import ModelRef


def held(name: str, licence: str = "") -> ModelRef:
    return ModelRef(name, Path(name), "gguf", "", 0, "user", "", licence, ())


SMOL, LLAMA2 = held("smollm2:135m", "Apache-2.0"), held("mine", "LicenseRef-scancode-llama-2-license-2023")


def test_a_permissive_teacher_may_teach():
    found = teaching(held("qwen2.5-coder:0.5b"), SMOL, Facts())
    assert found.may_teach is True
    assert found.answer in ("allowed", "conditions")
    assert json.dumps(found.as_json())


def test_a_licence_that_forbids_teaching_refuses_with_its_clause():
    with pytest.raises(UsageError) as e:
        teaching(LLAMA2, SMOL, Facts())
    assert "§1(b)(v)" in e.value.message
    assert "--accept-teacher-terms" in e.value.hint


def test_stated_rights_are_recorded_beside_the_refusal():
    found = teaching(LLAMA2, SMOL, Facts(), "contract of 2026-03-01 with the licensor")
    assert found.answer == "refused"
    assert found.as_json()["accepted"].startswith("contract")
    assert "used under: contract" in notes({"teacher's": found})[0]


def test_a_yes_is_not_a_statement_of_rights():
    with pytest.raises(UsageError, match="does not say which rights"):
        teaching(LLAMA2, SMOL, Facts(), "yes")


def test_a_teacher_of_the_same_family_may_teach():
    """The clause excepts improving the licensed model itself."""
    assert teaching(LLAMA2, LLAMA2, Facts()).refusal is None


def test_an_unknown_licence_is_open_and_said():
    found = teaching(held("somebodys-file"), SMOL, Facts())
    assert (found.answer, found.may_teach) == ("unknown", None)
    assert "not known" in notes({"teacher's": found})[0]


def test_a_base_states_the_duties_of_a_changed_model():
    found = base_licence(held("gemma3:270m"), Facts(redistributes=True))
    assert found.answer == "conditions"
    assert any("notice" in r.says.lower() for r in found.reasons)


def test_a_users_file_is_not_known_by_its_name_but_by_the_base_written_into_it(tmp_path: Path) -> None:
    from freehold.run.formats.gguf_writer import write_gguf
    from freehold.run.store.records import from_path, model_ref

    def ref(name: str, **keys: str) -> ModelRef:
        path = write_gguf(tmp_path / name, {"general.architecture": "llama", **keys}, [], [])
        return model_ref(from_path(path), tmp_path)

    assert licensed(ref("llama.gguf")).expression == ""
    assert licensed(ref("mine.gguf", **{"general.license": "mit"})).expression == "mit"
    assert licensed(ref("small.gguf", **{"freehold.base": "smollm2:135m"})).name.endswith(
        "SmolLM2-135M-Instruct"
    )
