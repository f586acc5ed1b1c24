"""A file that was replaced under a model's name is found out, and one that was only touched is not blamed."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import StoreError
from freehold.base.terminal import Ticking
from freehold.run.store import ModelRef, Store, home_files
from freehold.run.store.manifest import read_manifest, write_manifest
from tests.store.conftest import noise
from tests.store.standin import Standin


@pytest.fixture
def pulled(standin: Standin, store: Store) -> ModelRef:
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    return store.pull("org/m")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose digests were computed."""
    seen: list[Path] = []
    digest = home_files._sha256
    monkeypatch.setattr(home_files, "_sha256", lambda path: seen.append(path) or digest(path))
    return seen


def test_a_digest_that_is_compared_is_shown(store: Store, pulled: ModelRef, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []
    monkeypatch.setattr(Ticking, "start", lambda line: shown.append(line.text))
    store.resolve("org/m")
    assert shown == []
    touch(pulled.path)
    store.resolve("org/m")
    assert shown == [f"comparing the digest of {pulled.path.name}"]


def touch(path: Path, seconds: float = 60.0) -> None:
    later = path.stat().st_mtime + seconds
    os.utime(path, (later, later))


def test_another_file_of_the_same_size_is_an_error_with_two_ways_out(store: Store, pulled: ModelRef):
    pulled.path.write_bytes(noise(5000, 7))
    touch(pulled.path)
    for use in (store.resolve, store.pull):
        with pytest.raises(StoreError, match="was replaced: its digest is") as caught:
            use("org/m")
        assert "name its path" in caught.value.hint and "freehold rm" in caught.value.hint
    assert store.list()[0].state == "changed"
    store.remove("org/m")
    assert store.pull("org/m").path.read_bytes() == noise(5000)


def test_a_file_of_another_size_is_said_to_have_it_and_is_fetched_again(store: Store, pulled: ModelRef):
    pulled.path.write_bytes(noise(4000))
    with pytest.raises(StoreError, match=r"has 4,000 bytes and not the 5,000 that came"):
        store.resolve("org/m")
    assert store.pull("org/m").path.read_bytes() == noise(5000)


def test_a_file_that_was_only_touched_is_hashed_once(store: Store, pulled: ModelRef, hashed: list[Path]):
    touch(pulled.path)
    assert store.list()[0].state == "changed"
    assert store.resolve("org/m").digest == pulled.digest
    assert store.resolve("org/m").digest == pulled.digest and hashed == [pulled.path]
    assert store.list()[0].state == "ready"


def test_a_home_that_was_copied_serves_what_it_held(store: Store, pulled: ModelRef, tmp_path: Path):
    shutil.copytree(store.settings.home, tmp_path / "copy", copy_function=shutil.copyfile)
    copied = Store(replace(store.settings, home=tmp_path / "copy")).resolve("org/m")
    assert copied.digest == pulled.digest and copied.path != pulled.path


def test_a_record_without_a_time_goes_by_its_own(store: Store, pulled: ModelRef, hashed: list[Path]):
    folder = pulled.path.parent
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.files[0].mtime_ns
    old = replace(manifest, files=tuple(replace(f, mtime_ns=0) for f in manifest.files))
    write_manifest(folder, old)
    store.resolve("org/m")
    assert not hashed
    write_manifest(folder, old)
    pulled.path.write_bytes(noise(5000, 7))
    touch(pulled.path)
    with pytest.raises(StoreError, match="was replaced"):
        store.resolve("org/m")


@pytest.mark.parametrize("size, what", [(6000, "5,000 bytes then, 6,000 now"), (5000, "written")])
def test_another_programs_file_is_loaded_with_a_note_until_it_is_pulled(tmp_path: Path, size: int, what: str):
    root = tmp_path / "lm-studio"
    path = root / "org" / "tiny" / "tiny-Q8_0.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(noise(5000))
    store = Store(Settings(tmp_path / "home", foreign_roots=(("lm-studio", root),)))
    assert store.resolve("org/tiny:Q8_0").notes == ()
    path.write_bytes(noise(size, 7))
    touch(path)
    for _ in range(2):
        found = store.resolve("org/tiny:Q8_0")
        assert found.bytes == size and found.digest == ""
        assert len(found.notes) == 1 and what in found.notes[0] and "freehold pull" in found.notes[0]
        assert found.as_json()["notes"] == list(found.notes)
    store.pull("org/tiny:Q8_0")
    assert store.resolve("org/tiny:Q8_0").notes == ()
