"""`freehold update`: what changed at the source, and an exchange that keeps the old until the new answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from freehold.base.config import load_settings
from freehold.run.store import Store
from tests.store.standin import Standin, serving
from tests.vectors.files import write_gguf

NAME = "org/tiny-GGUF:Q8_0"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """A hub that has a tiny model, and a home without it."""
    monkeypatch.setenv("FREEHOLD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FREEHOLD_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("freehold.run.store.http.RETRY_S", 0.01)
    with serving(Standin()) as running:
        running.files = {
            "tiny-Q8_0.gguf": write_gguf("llama", tmp_path / "a.gguf", dtype="Q8_0").read_bytes()
        }
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def digest() -> str:
    return Store(load_settings()).resolve(NAME).digest


def test_a_current_model_is_said_to_be_current_and_nothing_is_fetched(hub: Standin, run):
    assert run("pull", NAME)[0] == 0
    before, asked = digest(), len(hub.requests)
    status, out, _ = run("update")
    assert status == 0 and out.startswith(f"{NAME}: current (hub: org/tiny-GGUF@")
    assert digest() == before and len(hub.requests) == asked + 1


def test_a_newer_revision_is_told_tried_and_taken(hub: Standin, run, tmp_path: Path):
    run("pull", NAME)
    before, path = digest(), Store(load_settings()).resolve(NAME).path
    hub.files = {"tiny-Q8_0.gguf": write_gguf("qwen2", tmp_path / "b.gguf", dtype="Q8_0").read_bytes()}
    status, out, _ = run("update", NAME, "--check")
    assert status == 0 and "a newer revision" in out and "changed: tiny-Q8_0.gguf" in out
    assert digest() == before
    status, out, err = run("update", NAME, "--json")
    assert status == 0 and f"{NAME}: updated" in err
    assert json.loads(out)["models"][0]["updated"] is True
    assert digest() != before and Store(load_settings()).resolve(NAME).path == path
    assert not (load_settings().home / "updates").exists()
    assert "current" in run("update", NAME)[1]


def test_new_files_that_do_not_answer_leave_the_old_ones(hub: Standin, run):
    run("pull", NAME)
    before = digest()
    hub.files = {"tiny-Q8_0.gguf": b"GGUF" + bytes(5000)}
    status, _, err = run("update", NAME)
    assert status == 1 and "do not answer" in err and "the old ones stay" in err
    assert digest() == before


def test_files_of_others_are_not_updated(hub: Standin, run, tmp_path: Path):
    run("pull", str(tmp_path / "a.gguf"))
    status, _, err = run("update", "a")
    assert status == 2 and "belongs to user" in err
    assert run("update")[0] == 2  # nothing was downloaded
