"""The store itself: names, paths, records, removal."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.config import Settings
from freehold.base.errors import BadModelFile, ModelNotFound, Offline, StoreError, UsageError
from freehold.run.formats.filemap import file_facts
from freehold.run.store import Store
from freehold.run.store.manifest import read_manifest, safe_relative, write_json
from freehold.run.store.refs import parse_ref, slug
from tests.store.conftest import noise
from tests.store.standin import Standin
from tests.vectors.files import write_gguf


@pytest.mark.parametrize(
    ("text", "kind", "canonical", "quant"),
    [
        ("qwen2.5-coder:0.5b", "name", "qwen2.5-coder:0.5b", ""),
        ("Qwen3:8B", "name", "qwen3:8b", ""),
        ("org/repo", "hub", "org/repo", ""),
        ("org/repo:Q4_K_M", "hub", "org/repo:Q4_K_M", "Q4_K_M"),
        ("hf.co/org/repo:Q8_0", "hub", "org/repo:Q8_0", "Q8_0"),
        ("hf://org/repo@v2:Q8_0", "hub", "org/repo@v2:Q8_0", "Q8_0"),
        ("https://huggingface.co/org/repo", "hub", "org/repo", ""),
        ("https://huggingface.co/org/repo/resolve/main/a/b.gguf", "hub", "org/repo:a/b.gguf", "a/b.gguf"),
        ("https://host/x.gguf#frag", "url", "https://host/x.gguf", ""),
        ("/models/x.gguf", "path", "/models/x.gguf", ""),
        ("file:///models/my%20x.gguf", "path", "/models/my x.gguf", ""),
    ],
)
def test_every_kind_of_model_is_told_apart(text: str, kind: str, canonical: str, quant: str):
    ref = parse_ref(text)
    assert (ref.kind, ref.text, ref.quant) == (kind, canonical, quant)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a\nb",
        "a/b/c",
        "org/..",
        "org/re po",
        "https://",
        "x" * 3000,
        "https://u:p@h/x.gguf",
        "~no-such-user/x",
    ],
)
def test_what_is_no_model_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_ref(text)


def test_adapter_behind_a_model_is_named_where_none_is_taken():
    with pytest.raises(UsageError) as e:
        parse_ref("smollm2:135m+./mine")
    assert "an adapter behind + is for run, eval and serve" in e.value.hint


def test_without_the_disk_only_the_spelling_of_a_name_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "there").touch()
    assert parse_ref("org/there").kind == "path"
    assert parse_ref("org/there", disk=False).kind == parse_ref("org/gone", disk=False).kind == "hub"
    assert parse_ref("~no-such-user/x", disk=False).kind == parse_ref("~root/x", disk=False).kind == "path"


def test_folder_names_differ_for_each_name_and_stay_inside():
    names = ["a:b", "a--b", "a/b", "A:b", "../x", "https://h/x?y", "." * 50, "n" * 500]
    slugs = [slug(n) for n in names]
    assert len({s.lower() for s in slugs}) == len(names)
    assert all("/" not in s and not s.startswith(".") and len(s) < 100 for s in slugs)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "c:x", "a\0b", ""])
def test_a_record_cannot_name_a_file_outside_its_folder(name: str):
    with pytest.raises(StoreError):
        safe_relative(name)


def test_a_path_is_a_model_where_it_lies(store: Store, tmp_path: Path):
    path = tmp_path / "my.gguf"
    path.write_bytes(noise(100))
    found = store.resolve(str(path))
    assert (found.path, found.owner, found.digest) == (path, "user", "")
    assert store.list() == [], "looking at a file records nothing"


def test_a_pulled_path_is_listed_under_its_stem_and_only_forgotten(store: Store, tmp_path: Path):
    path = tmp_path / "My.gguf"
    path.write_bytes(noise(100))
    assert store.pull(str(path)).name == "my"
    assert store.resolve("my").path == path
    assert store.remove("my").forgotten
    assert path.exists()
    with pytest.raises(ModelNotFound):
        store.resolve("my")


@pytest.mark.parametrize("kind", ["device", "pipe", "text", "empty", "link to a device"])
def test_what_is_no_model_file_gets_no_name(store: Store, tmp_path: Path, kind: str):
    path = tmp_path / "x.gguf"
    if kind == "device":
        path = Path("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.write_text("root:x:0:0:root:/root:/bin/bash\n" if kind == "text" else "")
    with pytest.raises(BadModelFile):
        store.pull(str(path))  # as `freehold create` does with what a Modelfile names
    assert store.list() == []


def test_a_stem_that_is_taken_is_refused(store: Store, tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.gguf").write_bytes(noise(100))
    store.pull(str(tmp_path / "a" / "m.gguf"))
    with pytest.raises(UsageError, match="already names") as refused:
        store.pull(str(tmp_path / "b" / "m.gguf"))
    assert "freehold rm m" in refused.value.hint  # a user's own file is only forgotten by it


def test_a_path_has_the_rounding_that_it_was_pulled_with(store: Store, tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(noise(100))
    assert store.pull(str(folder), rounding="q4").rounding == "q4"
    assert store.resolve("tiny").rounding == store.resolve(str(folder)).rounding == "q4"
    assert store.pull(str(folder)).rounding == "q4"
    assert store.pull(str(folder), rounding="").rounding == store.resolve(str(folder)).rounding == ""


def test_a_folder_of_safetensors_is_a_model(store: Store, tmp_path: Path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    with pytest.raises(ModelNotFound, match="without"):
        store.resolve(str(folder))
    (folder / "model.safetensors").write_bytes(noise(100))
    assert store.resolve(str(folder)).kind == "safetensors"


def test_a_name_that_is_not_held_names_its_pull(store: Store):
    with pytest.raises(ModelNotFound) as e:
        store.resolve("smollm2:135m")
    assert e.value.hint == "freehold pull smollm2:135m"


def test_a_misspelt_name_names_its_neighbours(store: Store):
    with pytest.raises(ModelNotFound) as e:
        store.resolve("smolm2:135m")
    assert "smollm2:135m" in e.value.hint


def test_offline_refuses_a_package_index_too(settings: Settings):
    with pytest.raises(Offline, match=r"smollm2:135m is not downloaded"):
        Store(replace(settings, offline=True)).pull("smollm2:135m")


def test_rm_deletes_files_and_packs(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    found = store.pull("org/m")
    store.packs.mkdir()
    (store.packs / f"{found.digest}-v1.pack").write_bytes(bytes(700))
    (store.packs / f"{'0' * 64}-v1.pack").write_bytes(bytes(9))
    assert store.list()[0].pack_bytes == 700
    removed = store.remove("org/m")
    assert (removed.freed, removed.forgotten) == (5700, False)
    assert store.list() == []
    assert [p.name for p in store.packs.iterdir()] == [f"{'0' * 64}-v1.pack"]
    assert not list(store.models.iterdir())


def test_rm_of_a_file_used_in_place_deletes_its_packs_unless_another_name_has_it(
    store: Store, tmp_path: Path
):
    mine = write_gguf("llama", tmp_path / "mine.gguf")
    (tmp_path / "also.gguf").symlink_to(mine)
    store.pull(str(mine)), store.pull(str(tmp_path / "also.gguf"))
    store.packs.mkdir()
    pack = store.packs / f"{file_facts([mine])}-v1.pack"
    pack.write_bytes(bytes(700))
    assert store.remove("mine").freed == 0 and pack.exists()
    assert store.remove("also").freed == 700 and not pack.exists() and mine.exists()


def test_rm_leaves_the_packs_of_another_name_with_the_same_bytes(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    digest = store.pull("org/m").digest
    store.pull("org/other")
    store.packs.mkdir()
    pack = store.packs / f"{digest}-v1.pack"
    pack.write_bytes(bytes(700))
    assert store.remove("org/m").freed == 5000 and pack.exists()
    assert store.remove("org/other").freed == 5700 and not pack.exists()


def test_rm_of_an_unfinished_pull_frees_its_part(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(2_000_000)}
    standin.throttle_s = 0.01

    def stop(event) -> None:
        if getattr(event, "done", 0) > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("org/m", stop)
    assert store.remove("org/m:Q4_K_M").freed > 0
    assert store.list() == []


def test_a_damaged_record_shows_as_unfinished_and_heals(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    found = store.pull("org/m")
    (found.path.parent / "manifest.json").write_text("{")
    assert [m.state for m in store.list()] == ["incomplete"]
    sent = standin.sent
    assert store.pull("org/m").path.read_bytes() == noise(5000)
    assert standin.sent == sent, "the file itself was whole"


def test_a_deleted_file_is_said_to_have_vanished_and_pulled_again(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    found = store.pull("org/m")
    found.path.unlink()
    with pytest.raises(StoreError, match="file vanished"):
        store.resolve("org/m")
    assert store.pull("org/m").path.read_bytes() == noise(5000)


def test_use_is_recorded(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    found = store.pull("org/m")
    manifest = read_manifest(found.path.parent)
    assert manifest and manifest.last_used and manifest.created
    assert manifest.aliases == ("org/m",)


def test_records_are_plain_json(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": noise(5000)}
    assert store.pull("org/m").as_json()["bytes"] == 5000
    assert set(store.list()[0].as_json()) >= {
        "name",
        "state",
        "owner",
        "bytes",
        "held",
        "pack_bytes",
        "digest",
        "path",
    }


def test_two_threads_write_one_record_and_it_is_whole_at_any_moment(tmp_path, monkeypatch):
    path, dump = tmp_path / "record.json", json.dump

    def interrupted(value: object, file, **how: object) -> None:
        if value == {"one": 1}:
            other = threading.Thread(target=write_json, args=(path, {"two": 2}))
            other.start()
            other.join(60)
            assert json.loads(path.read_text()) == {"two": 2}
        dump(value, file, **how)

    monkeypatch.setattr(json, "dump", interrupted)
    write_json(path, {"one": 1})
    assert json.loads(path.read_text()) == {"one": 1} and [*tmp_path.iterdir()] == [path]
