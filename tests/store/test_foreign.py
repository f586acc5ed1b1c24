"""Models of other programs: found where they lie, referenced, never touched."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import StoreError
from freehold.run.store import Note, Store
from tests.store.conftest import noise
from tests.store.standin import Standin

BODY = noise(5000)
DIGEST = hashlib.sha256(BODY).hexdigest()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def ollama(root: Path, name: str = "registry.ollama.ai/library/tiny/1m", kind: str = "model") -> Path:
    template = b"{{ .Prompt }}"
    layers = [(kind, BODY), ("template", template)]
    manifest = {
        "layers": [
            {
                "mediaType": f"application/vnd.ollama.image.{k}",
                "digest": f"sha256:{hashlib.sha256(b).hexdigest()}",
                "size": len(b),
            }
            for k, b in layers
        ]
    }
    put(root / "manifests" / name, json.dumps(manifest).encode())
    put(root / "blobs" / f"sha256-{hashlib.sha256(template).hexdigest()}", template)
    return put(root / "blobs" / f"sha256-{DIGEST}", BODY)


def hub_cache(root: Path, repo: str, files: dict[str, bytes]) -> Path:
    folder = root / f"models--{repo.replace('/', '--')}"
    put(folder / "refs" / "main", b"abc123abc123")
    for name, body in files.items():
        blob = put(folder / "blobs" / hashlib.sha256(body).hexdigest(), body)
        link = folder / "snapshots" / "abc123abc123" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder / "snapshots" / "abc123abc123"


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    return {owner: tmp_path / owner for owner in ("ollama", "lm-studio", "hub-cache")}


@pytest.fixture
def adopting(settings: Settings, roots: dict[str, Path]) -> Store:
    return Store(replace(settings, foreign_roots=tuple(roots.items())))


def test_ollama_s_model_is_listed_with_its_owner_and_digest(adopting: Store, roots: dict[str, Path]):
    blob = ollama(roots["ollama"])
    (listed,) = adopting.list()
    assert (listed.name, listed.owner, listed.state) == ("tiny:1m", "ollama", "ready")
    assert (listed.path, listed.digest, listed.bytes) == (blob, DIGEST, len(BODY))
    found = adopting.resolve("tiny:1m")
    assert found.path == blob
    assert found.extras["template"].read_bytes() == b"{{ .Prompt }}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [("registry.ollama.ai/me/tiny/2m", "me/tiny:2m"), ("hf.co/org/tiny-GGUF/Q4_K_M", "org/tiny-GGUF:Q4_K_M")],
)
def test_ollama_s_other_names_are_told_apart(adopting: Store, roots: dict[str, Path], name: str, shown: str):
    ollama(roots["ollama"], name)
    assert adopting.resolve(shown).name == shown


def test_ollama_s_raw_tensor_models_are_passed_over(adopting: Store, roots: dict[str, Path]):
    ollama(roots["ollama"], kind="tensor")
    put(roots["ollama"] / "manifests" / "registry.ollama.ai" / "library" / "odd" / "x", b"[1, 2")
    assert adopting.list() == []


def test_lm_studio_s_files_are_found_by_quantisation(adopting: Store, roots: dict[str, Path]):
    path = put(roots["lm-studio"] / "org" / "tiny-GGUF" / "tiny-Q8_0.gguf", BODY)
    put(roots["lm-studio"] / "org" / "tiny-GGUF" / "mmproj-F16.gguf", BODY)
    (listed,) = adopting.list()
    assert (listed.name, listed.owner, listed.path) == ("org/tiny-GGUF:Q8_0", "lm-studio", path)
    assert adopting.resolve("org/tiny-GGUF").path == path


def test_the_hub_cache_gives_files_and_folders(adopting: Store, roots: dict[str, Path]):
    snapshot = hub_cache(roots["hub-cache"], "org/tiny-GGUF", {"tiny-Q4_K_M.gguf": BODY})
    assert adopting.resolve("org/tiny-GGUF").digest == DIGEST
    assert adopting.resolve("org/tiny-GGUF").path == snapshot / "tiny-Q4_K_M.gguf"
    folder = hub_cache(roots["hub-cache"], "org/tiny", {"config.json": b"{}", "model.safetensors": BODY})
    assert adopting.resolve("org/tiny").path == folder


def test_a_half_downloaded_cache_entry_is_passed_over(adopting: Store, roots: dict[str, Path]):
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    files = {"config.json": b"{}", "model.safetensors.index.json": index.encode()}
    hub_cache(roots["hub-cache"], "org/tiny", {**files, "model-00001-of-00002.safetensors": BODY})
    assert adopting.list() == []


def test_a_pull_of_what_another_program_holds_copies_nothing(
    adopting: Store, roots: dict[str, Path], standin: Standin
):
    blob = ollama(roots["ollama"])
    events: list = []
    assert adopting.pull("tiny:1m", events.append).path == blob
    assert any(isinstance(e, Note) and "not copied" in e.text for e in events)
    assert not standin.requests
    held = [p.name for p in adopting.settings.home.rglob("*") if p.is_file()]
    assert held == ["manifest.json"]


def test_a_file_that_vanished_is_said_to_have(adopting: Store, roots: dict[str, Path]):
    blob = ollama(roots["ollama"])
    adopting.resolve("tiny:1m")
    blob.unlink()
    assert adopting.list()[0].state == "vanished"
    with pytest.raises(StoreError, match=r"file vanished: .* \(owner: ollama\)"):
        adopting.resolve("tiny:1m")


def test_a_file_that_changed_loses_its_digest(adopting: Store, roots: dict[str, Path]):
    path = put(roots["lm-studio"] / "org" / "tiny" / "tiny-Q8_0.gguf", BODY)
    adopting.resolve("org/tiny:Q8_0")
    path.write_bytes(noise(6000))
    assert adopting.show("org/tiny:Q8_0").state == "changed"
    found = adopting.resolve("org/tiny:Q8_0")
    assert (found.bytes, found.digest) == (6000, "")


def test_rm_forgets_and_pull_remembers(adopting: Store, roots: dict[str, Path]):
    blob = ollama(roots["ollama"])
    adopting.pull("tiny:1m")
    removed = adopting.remove("tiny:1m")
    assert removed.forgotten
    assert blob.exists()
    assert adopting.list() == []
    assert adopting.pull("tiny:1m").path == blob
    assert [m.name for m in adopting.list()] == ["tiny:1m"]


def test_nothing_is_written_into_another_program_s_store(adopting: Store, roots: dict[str, Path]):
    ollama(roots["ollama"])
    before = {p: p.stat().st_mtime_ns for p in roots["ollama"].rglob("*")}
    adopting.list()
    adopting.pull("tiny:1m")
    adopting.remove("tiny:1m")
    assert {p: p.stat().st_mtime_ns for p in roots["ollama"].rglob("*")} == before


@pytest.mark.parametrize("hostile", ["pipe", "device", "deep", "long"])
@pytest.mark.parametrize("place", ["manifest", "reference"])
def test_what_would_never_end_in_another_program_s_store_is_passed_over(
    adopting: Store, roots: dict[str, Path], place: str, hostile: str
):
    ollama(roots["ollama"])
    snapshot = hub_cache(roots["hub-cache"], "org/m", {"m.gguf": BODY})
    ref = snapshot.parent.parent / "refs" / "main"
    path = ref if place == "reference" else put(roots["ollama"] / "manifests/x/y/z/1", b"")
    path.unlink()
    if hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"[" * 200_000 if hostile == "deep" else b" " * (5 << 20))
    assert {m.name for m in adopting.list()} == {"tiny:1m", "org/m:m.gguf"}
