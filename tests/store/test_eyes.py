"""The tower beside a GGUF: chosen by name, checked by header, kept together with its model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.errors import (
    BadModelFile,
    CapacityExceeded,
    DownloadFailed,
    FileVanished,
    Offline,
    UsageError,
)
from freehold.run.store import Event, Note, Planned, Progress, Store
from freehold.run.store.create import copy
from freehold.run.store.eyes import beside, has_tower, misfit
from freehold.run.store.quants import mmproj_of
from freehold.run.store.renewing import fetched, renewal, take
from freehold.run.store.space import human
from tests.store.conftest import UNIT
from tests.store.gguf_pair import text_model, tower
from tests.store.standin import Standin
from tests.store.test_foreign import hub_cache, put

MODEL, TOWER = text_model(), tower(fill=4 * UNIT)
NAME = "org/m:Q4_K_M"


@pytest.fixture
def hub(standin: Standin) -> Standin:
    standin.files = {"m-Q4_K_M.gguf": MODEL, "mmproj-F16.gguf": TOWER}
    return standin


def said(events: list[Event]) -> str:
    return "\n".join(e.text for e in events if isinstance(e, Note))


def towers(store: Store) -> list[str]:
    return sorted(p.name for p in store.models.rglob("mmproj*"))


# --- which file it is, by its name -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "beside", "chosen"),
    [
        ("m-Q4_K_M.gguf", ["mmproj-F32.gguf", "mmproj-Q8_0.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], 2),
        ("m-Q4_K_M.gguf", ["mmproj-Q8_0.gguf", "mmproj-F32.gguf", "mmproj-model-f16.gguf"], 2),
        ("m-Q4_K_M.gguf", ["mmproj-Q8_0.gguf", "mmproj-F32.gguf"], 1),
        ("m-Q4_K_M.gguf", ["mmproj-Q5_K_M.gguf", "mmproj-Q8_0.gguf"], 1),
        ("m-Q4_K_M.gguf", ["mmproj.gguf"], 0),
        ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", ["mmproj-F16.gguf", "Q8_0/mmproj-BF16.gguf"], 0),
        ("Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", ["mmproj-BF16.gguf", "Q4_K_M/mmproj-F16.gguf"], 1),
        ("m-Q4_K_M.gguf", ["other/mmproj-F16.gguf"], None),
        ("Qwen2.5-VL-7B-Instruct.Q4_K_M.gguf", ["Qwen2.5-VL-7B-Instruct.mmproj-fp16.gguf"], 0),
        ("google_gemma-3-4b-it-Q4_K_M.gguf", ["mmproj-google_gemma-3-4b-it-f16.gguf"], 0),
        ("gemma-3-4b-it-q4_0.gguf", ["mmproj-model-f16-12B.gguf", "mmproj-model-f16-4B.gguf"], 1),
        ("gemma-3-27b-it-q4_0.gguf", ["mmproj-model-f16-12B.gguf", "mmproj-model-f16-4B.gguf"], None),
        ("gemma-3-27b-it-q4_0.gguf", ["mmproj-model-f16-4B.gguf"], None),
        ("gemma-4-E4B-it-Q4_K_M.gguf", ["mmproj-gemma-4-E2B-it-F16.gguf"], None),
        ("m-4b-Q4_K_M.gguf", ["mmproj-BF16.gguf", "mmproj-m-4b-F16.gguf"], 1),
        ("ShowUI-2B-Q4_K_M.gguf", ["mmproj-Qwen2-VL-2B-Instruct-f16.gguf"], 0),
        ("moondream2-text-model-f16.gguf", ["moondream2-mmproj-f16.gguf"], 0),
    ],
)
def test_the_tower_of_a_model_is_chosen_by_folder_name_and_type(
    model: str, beside: list[str], chosen: int | None
):
    path, why = mmproj_of([model], [model, "m-imatrix.gguf", *beside])
    assert path == ("" if chosen is None else beside[chosen])
    assert bool(why) == (chosen is None and not any(b.startswith("other/") for b in beside))


def test_why_no_tower_is_taken_is_in_the_detail(standin: Standin, store: Store):
    standin.files = {"m-27b-Q4_K_M.gguf": MODEL, "mmproj-m-4b-F16.gguf": TOWER}
    assert store.pull("org/m").eyes is None
    assert store.list()[0].detail.endswith(
        "; no eyes: the names of its mmproj files are of other models: mmproj-m-4b-F16.gguf"
    )


# --- pulled with its model ---------------------------------------------------------------------------


def test_a_model_comes_with_its_tower_and_the_size_of_both_is_said_first(hub: Standin, store: Store):
    events: list[Event] = []
    ref = store.pull("org/m", events.append)
    assert ref.eyes is not None and ref.eyes.read_bytes() == TOWER
    assert ref.eyes.parent == ref.path.parent and ref.files == (ref.path,)
    assert (ref.digest, ref.bytes) == (hashlib.sha256(MODEL).hexdigest(), len(MODEL)), (
        "of the text model alone"
    )
    planned = next(e for e in events if isinstance(e, Planned))
    assert (planned.files, planned.total) == (2, len(MODEL) + len(TOWER))
    assert f"with its vision encoder mmproj-F16.gguf ({human(len(TOWER))}); --no-eyes leaves it out" in said(
        events
    )
    assert [e.done for e in events if isinstance(e, Progress)][-1] == len(MODEL) + len(TOWER)
    asked = len(hub.requests)
    assert store.pull("org/m").eyes == store.resolve("org/m").eyes == ref.eyes
    assert len(hub.requests) == asked


def test_a_model_without_one_has_the_record_that_older_versions_read(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": MODEL}
    ref = store.pull("org/m")
    assert ref.eyes is None and ref.as_json()["eyes"] is None
    record = json.loads((ref.path.parent / "manifest.json").read_text())
    assert not record.keys() & {"eyes", "eyes_left_out"}


def test_the_tower_is_counted_listed_verified_and_deleted_with_its_model(hub: Standin, store: Store):
    ref = store.pull("org/m")
    (model,) = store.list()
    both = len(MODEL) + len(TOWER)
    assert (model.eyes, model.eyes_bytes, model.bytes, model.held) == (ref.eyes, len(TOWER), both, both)
    assert model.as_json()["eyes"] == str(ref.eyes)
    assert {f.path: f.sha256 for f in store.files()}[ref.eyes] == hashlib.sha256(TOWER).hexdigest()
    assert store.remove("org/m").freed == both
    assert not list(store.models.iterdir())


def test_another_name_for_a_model_has_its_eyes(hub: Standin, store: Store):
    ref = store.pull("org/m")
    copy(store, "org/m", "mine")
    assert store.resolve("mine").eyes == ref.eyes and store.show("mine").eyes == ref.eyes


def test_an_interrupted_tower_is_resumed_where_it_stopped(hub: Standin, store: Store):
    hub.throttle_s = 0.05

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.done > len(MODEL) + 2 * UNIT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("org/m", stop)
    left = store.list()[0]
    assert left.state == "incomplete" and left.held >= len(MODEL)
    hub.throttle_s, hub.sent = 0.0, 0
    ref = store.pull("org/m")
    assert ref.eyes is not None and ref.eyes.read_bytes() == TOWER
    assert hub.sent <= len(MODEL) + len(TOWER) - left.held


def test_a_tower_of_another_digest_is_not_taken(hub: Standin, store: Store):
    hub.digests = {"mmproj-F16.gguf": "0" * 64}
    with pytest.raises(DownloadFailed, match=r"mmproj-F16.gguf has digest"):
        store.pull("org/m")
    assert towers(store) == []


def test_a_disk_without_room_for_both_is_told_before_a_byte(hub: Standin, store: Store, monkeypatch):
    asked: list[int] = []

    def full(_folder: Path, wanted: int, what: str) -> None:
        asked.append(wanted)
        raise CapacityExceeded(f"{what} needs more")

    monkeypatch.setattr("freehold.run.store.space.require", full)
    with pytest.raises(CapacityExceeded):
        store.pull("org/m")
    assert asked == [len(MODEL) + len(TOWER)] and hub.sent == 0


def test_a_tower_that_is_gone_is_fetched_again_and_nothing_else(hub: Standin, store: Store):
    ref = store.pull("org/m")
    assert ref.eyes is not None
    ref.eyes.unlink()
    with pytest.raises(FileVanished, match=r"file vanished: .*mmproj-F16.gguf"):
        store.resolve("org/m")
    hub.sent = 0
    assert store.pull("org/m").eyes == ref.eyes
    assert hub.sent == len(TOWER)
    ref.eyes.unlink()
    assert store.pull("org/m", eyes=False).eyes is None
    assert store.resolve("org/m").path == ref.path


# --- not taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        (tower(2560), "its features have 2,560 columns, but m-Q4_K_M.gguf expects 64"),
        (tower(bases=["Qwen/Qwen2-VL-7B"]), "it names other base models than m-Q4_K_M.gguf"),
        (
            text_model(),
            "mmproj-F16.gguf is not a vision encoder: its architecture is 'llama', expected 'clip'",
        ),
        (b"GGUF" + bytes(range(256)), "mmproj-F16.gguf"),
    ],
    ids=["width", "base", "no-tower", "damaged"],
)
def test_a_stray_tower_is_refused_by_name_and_the_model_kept(
    hub: Standin, store: Store, stray: bytes, why: str
):
    hub.files = {"m-Q4_K_M.gguf": text_model(bases=["Qwen/Qwen2.5-VL-7B"]), "mmproj-F16.gguf": stray}
    with pytest.raises(BadModelFile) as caught:
        store.pull("org/m")
    assert why in caught.value.message
    assert caught.value.hint == f"freehold pull {NAME} --no-eyes downloads the model without it"
    assert towers(store) == [] and store.list()[0].state == "incomplete"
    hub.sent = 0
    assert store.pull("org/m", eyes=False).eyes is None
    assert hub.sent == 0, "the model's own file stayed"


@pytest.mark.parametrize(
    ("model", "its"),
    [
        (text_model(), tower(768, projector="mlp", last=64)),  # the first converters state CLIP's own width
        (text_model(), tower(768, projector="", last=64)),
        (text_model(bases=["google/gemma-3-4b-it"]), tower(bases=["google/gemma-3-4b-it"])),
        (
            text_model(bases=["google/gemma-3-4b-it"]),
            tower(name="Gemma 3 4b It", bases=["google/gemma-3-4b-pt"]),
        ),
        (text_model(bases=["google/gemma-3-4b-it"]), tower()),
        (text_model(bases=["a/x", "b/merged"]), tower(bases=["b/merged"])),
    ],
    ids=["mlp", "unnamed", "base", "base-by-name", "no-base", "one-of-two"],
)
def test_a_pair_fits_by_width_and_base_models(tmp_path: Path, model: bytes, its: bytes):
    assert misfit(put(tmp_path / "m.gguf", model), put(tmp_path / "mmproj.gguf", its)) == ""


def test_the_last_matrix_of_an_old_tower_tells_its_width(tmp_path: Path):
    stray = put(tmp_path / "mmproj.gguf", tower(64, projector="mlp", last=128))
    assert "have 128 columns" in misfit(put(tmp_path / "m.gguf", MODEL), stray)


def test_a_tower_for_sound_is_deleted_with_a_note(hub: Standin, store: Store):
    hub.files["mmproj-F16.gguf"] = tower(sees=False, projector="ultravox")
    events: list[Event] = []
    ref = store.pull("org/m", events.append)
    assert ref.eyes is None and towers(store) == []
    assert "mmproj-F16.gguf is an audio encoder, not a vision encoder: it was deleted" in said(events)
    assert store.list()[0].detail.endswith("; mmproj-F16.gguf is an audio encoder, and was left out")
    assert renewal(store, "org/m", lambda _: None).changes == ()


def test_a_model_is_pulled_without_eyes_and_gets_them_later(hub: Standin, store: Store, settings):
    ref = store.pull("org/m", eyes=False)
    assert ref.eyes is None and hub.sent == len(MODEL)
    assert store.pull("org/m").eyes is None and renewal(store, "org/m", lambda _: None).changes == ()
    with pytest.raises(Offline, match="is installed without its vision encoder"):
        Store(replace(settings, offline=True)).pull("org/m", eyes=True)
    events: list[Event] = []
    hub.sent = 0
    seeing = store.pull("org/m", events.append, eyes=True)
    assert seeing.eyes is not None and store.resolve("org/m").eyes == seeing.eyes
    assert hub.sent == len(TOWER) == events[-1].fetched  # type: ignore[union-attr]
    assert store.pull("org/m", eyes=False).eyes is None
    assert towers(store) == [] and store.list()[0].eyes_left_out


def test_an_unfinished_tower_goes_when_it_is_no_longer_wanted(hub: Standin, store: Store):
    hub.throttle_s = 0.05

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.done > len(MODEL) + 2 * UNIT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.pull("org/m", stop)
    hub.throttle_s = 0.0
    store.pull("org/m", eyes=False)
    assert towers(store) == []


def test_eyes_that_a_repository_does_not_have_are_refused(standin: Standin, store: Store):
    standin.files = {"m-Q4_K_M.gguf": MODEL}
    for _ in range(2):  # before it is here, and after
        with pytest.raises(UsageError, match=r"has no mmproj file for org/m:Q4_K_M"):
            store.pull("org/m", eyes=True)
        store.pull("org/m")


def test_safetensors_come_with_what_their_tower_needs(standin: Standin, store: Store):
    beside = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
    standin.files = {"config.json": b"{}", "model.safetensors": MODEL} | dict.fromkeys(beside, b"{}")
    events: list[Event] = []
    ref = store.pull("org/m", events.append, eyes=False)
    assert ref.eyes is None and {p.name for p in ref.files} >= set(beside)
    assert "safetensors files contain the vision encoder, so --no-eyes has no effect" in said(events)


# --- updated -----------------------------------------------------------------------------------------


def test_a_tower_that_is_new_at_the_source_is_all_that_an_update_fetches(hub: Standin, store: Store):
    its = hub.files.pop("mmproj-F16.gguf")
    ref = store.pull("org/m")
    store.packs.mkdir()
    pack = store.packs / f"{ref.digest}-v1.pack"
    pack.write_bytes(bytes(700))
    hub.files["mmproj-F16.gguf"], hub.sent = its, 0
    new = renewal(store, "org/m", lambda _: None)
    assert new.changes == (f"new: mmproj-F16.gguf ({human(len(its))})",)
    assert fetched(store, new, lambda _: None).eyes is not None
    assert hub.sent == len(its)
    assert take(store, new) == 0 and pack.exists(), "the model's file and its pack stay"
    seeing = store.resolve("org/m")
    assert seeing.eyes is not None and seeing.path.read_bytes() == MODEL
    assert renewal(store, "org/m", lambda _: None).changes == ()


def test_an_update_brings_a_changed_model_and_keeps_its_tower(hub: Standin, store: Store):
    store.pull("org/m")
    hub.files["m-Q4_K_M.gguf"], hub.sent = text_model(name="newer"), 0
    new = renewal(store, "org/m", lambda _: None)
    assert len(new.changes) == 1 and new.changes[0].startswith("changed: m-Q4_K_M.gguf")
    fetched(store, new, lambda _: None)
    assert hub.sent == len(hub.files["m-Q4_K_M.gguf"])
    assert take(store, new) == len(MODEL)
    ref = store.resolve("org/m")
    assert ref.eyes is not None and ref.eyes.read_bytes() == TOWER


def test_an_update_that_was_interrupted_takes_no_linked_file_for_a_newer_one(hub: Standin, store: Store):
    store.pull("org/m")
    hub.files["m-Q4_K_M.gguf"] = text_model(name="newer")
    fetched(store, renewal(store, "org/m", lambda _: None), lambda _: None)  # and never taken
    (
        store.settings.home / "updates" / "models" / store.resolve("org/m").path.parent.name / "manifest.json"
    ).unlink()
    newer = bytearray(TOWER)
    newer[-1] = 1
    hub.files["mmproj-F16.gguf"] = bytes(newer)
    ref = fetched(store, renewal(store, "org/m", lambda _: None), lambda _: None)
    assert ref.eyes is not None and ref.eyes.read_bytes() == newer
    assert store.resolve("org/m").eyes.read_bytes() == TOWER  # type: ignore[union-attr]


# --- of other programs, and of the user ----------------------------------------------------------------


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    return {owner: tmp_path / owner for owner in ("ollama", "lm-studio", "hub-cache")}


@pytest.fixture
def adopting(settings, roots: dict[str, Path]) -> Store:
    return Store(replace(settings, foreign_roots=tuple(roots.items())))


def ollama(root: Path, its: bytes) -> tuple[Path, Path]:
    layers = []
    for kind, body in (("model", MODEL), ("projector", its)):
        digest = hashlib.sha256(body).hexdigest()
        put(root / "blobs" / f"sha256-{digest}", body)
        layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"})
    put(root / "manifests/registry.ollama.ai/library/tiny/1m", json.dumps({"layers": layers}).encode())
    model, projector = (root / "blobs" / layer["digest"].replace(":", "-") for layer in layers)
    return model, projector


def test_ollama_s_projector_is_adopted_where_it_lies(adopting: Store, roots: dict[str, Path]):
    model, projector = ollama(roots["ollama"], TOWER)
    (listed,) = adopting.list()
    assert (listed.eyes, listed.bytes) == (projector, len(MODEL) + len(TOWER))
    ref = adopting.resolve("tiny:1m")
    assert (ref.path, ref.eyes, ref.notes) == (model, projector, ())
    assert adopting.remove("tiny:1m").forgotten and projector.exists()


def test_a_stray_projector_of_ollama_leaves_the_model_with_a_note(adopting: Store, roots: dict[str, Path]):
    model, _ = ollama(roots["ollama"], tower(2560))
    ref = adopting.resolve("tiny:1m")
    assert (ref.path, ref.eyes) == (model, None)
    assert "tiny:1m is loaded without eyes: " in ref.notes[0] and "2,560 columns" in ref.notes[0]


def test_a_projector_that_is_gone_leaves_the_model_with_a_note(adopting: Store, roots: dict[str, Path]):
    model, projector = ollama(roots["ollama"], TOWER)
    adopting.resolve("tiny:1m")
    projector.unlink()
    ref = adopting.resolve("tiny:1m")
    assert (ref.path, ref.eyes) == (model, None) and "file vanished" in ref.notes[0]


def test_lm_studio_and_the_hub_cache_give_towers_too(adopting: Store, roots: dict[str, Path]):
    files = {"m-Q8_0.gguf": MODEL, "mmproj-F32.gguf": TOWER, "mmproj-F16.gguf": TOWER}
    for name, body in files.items():
        put(roots["lm-studio"] / "org/studio" / name, body)
    snapshot = hub_cache(roots["hub-cache"], "org/cached", files)
    assert adopting.resolve("org/studio").eyes == roots["lm-studio"] / "org/studio/mmproj-F16.gguf"
    assert adopting.resolve("org/cached").eyes == snapshot / "mmproj-F16.gguf"


def test_a_model_that_was_recorded_before_its_tower_came_gets_it_when_it_is_pulled_again(
    adopting: Store, roots: dict[str, Path]
):
    folder = roots["lm-studio"] / "org/m"
    put(folder / "m-Q8_0.gguf", MODEL)
    adopting.resolve("org/m")
    its = put(folder / "mmproj-F16.gguf", TOWER)
    assert adopting.resolve("org/m").eyes is None
    assert adopting.pull("org/m").eyes == adopting.resolve("org/m").eyes == its
    assert adopting.pull("org/m", eyes=False).eyes is adopting.resolve("org/m").eyes is None
    assert its.exists() and adopting.pull("org/m", eyes=True).eyes == its
    its.unlink()
    with pytest.raises(UsageError, match="there is no mmproj file for org/m"):
        adopting.pull("org/m", eyes=True)


def test_the_one_tower_that_fits_beside_a_file_is_taken(store: Store, tmp_path: Path):
    path = put(tmp_path / "m.gguf", MODEL)
    assert store.resolve(str(path)).eyes is None
    put(tmp_path / "mmproj-big-F16.gguf", tower(2560))
    put(tmp_path / "mmproj-hears-F16.gguf", tower(sees=False))
    put(tmp_path / "mmproj-bad-F16.gguf", b"GGUF")
    assert (
        store.resolve(str(path)).eyes is None and beside(path).why == "none of 3 mmproj files next to it fits"
    )
    put(tmp_path / "mmproj-small-F32.gguf", TOWER)
    its = put(tmp_path / "mmproj-small-F16.gguf", TOWER)
    ref = store.resolve(str(path))
    assert (ref.eyes, ref.notes, ref.bytes) == (its, (), len(MODEL))
    assert store.show(str(path)).eyes == its
    assert store.pull(str(path)).eyes == store.resolve("m").eyes == its
    assert store.pull(str(path), eyes=False).eyes is store.resolve(str(path)).eyes is None


def test_between_two_towers_that_fit_a_file_the_name_decides_or_a_note_says_so(store: Store, tmp_path: Path):
    for name in ("mmproj-one-F16.gguf", "mmproj-two-F16.gguf"):
        put(tmp_path / name, TOWER)
    assert store.resolve(str(put(tmp_path / "one-Q8_0.gguf", MODEL))).eyes == tmp_path / "mmproj-one-F16.gguf"
    ref = store.resolve(str(put(tmp_path / "m.gguf", MODEL)))
    assert ref.eyes is None and "mmproj-one-F16.gguf, mmproj-two-F16.gguf" in ref.notes[0]


def test_a_folder_of_one_model_and_its_tower_is_a_model(store: Store, tmp_path: Path):
    path, its = put(tmp_path / "m/model.gguf", MODEL), put(tmp_path / "m/mmproj.gguf", TOWER)
    ref = store.resolve(str(tmp_path / "m"))
    assert (ref.name, ref.path, ref.eyes) == ("m", path, its)


def test_a_tower_that_comes_with_a_model_is_known_from_its_files(store: Store, tmp_path: Path):
    path = put(tmp_path / "m/m.gguf", MODEL)
    assert not has_tower(store.show(str(path)))
    put(tmp_path / "m/mmproj.gguf", TOWER)
    assert has_tower(store.show(str(path)))
    folder = put(tmp_path / "st/model.safetensors", MODEL).parent
    for config, sees in (({}, False), ({"vision_config": {"depth": 2}}, True)):
        put(folder / "config.json", json.dumps(config).encode())
        assert has_tower(store.show(str(folder))) is sees
