"""Pulling from a hub: selection, resume, and every way a server can let us down."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from freehold.base.errors import (
    AccessDenied,
    DownloadFailed,
    ModelNotFound,
    Offline,
    UnsupportedModel,
    UsageError,
)
from freehold.run.store import Event, Note, Planned, Progress, Store
from tests.store.conftest import UNIT, noise
from tests.store.standin import Standin, serving

SIZE = 10 * UNIT + 1234
BODY = noise(SIZE)


@pytest.fixture
def hub(standin: Standin) -> Standin:
    standin.files = {"tiny-Q4_K_M.gguf": BODY, "tiny-Q8_0.gguf": noise(5000, 1)}
    return standin


def parts(store: Store) -> list[Path]:
    return sorted(store.models.rglob("*.part*"))


def notes(events: list[Event]) -> str:
    return "\n".join(e.text for e in events if isinstance(e, Note))


def test_pull_brings_the_preferred_quantisation_and_says_so(hub: Standin, store: Store):
    events: list[Event] = []
    found = store.pull("org/tiny-GGUF", events.append)
    assert found.path.read_bytes() == BODY
    assert found.name == "org/tiny-GGUF:Q4_K_M"
    assert found.digest == hashlib.sha256(BODY).hexdigest()
    assert found.licence == "Apache-2.0"
    planned = next(e for e in events if isinstance(e, Planned))
    assert "Q4_K_M (chosen for you" in planned.detail
    assert planned.total == SIZE
    assert [e.done for e in events if isinstance(e, Progress)][-1] == SIZE
    assert not parts(store)


def test_a_held_name_never_calls_out(hub: Standin, store: Store):
    store.pull("org/tiny-GGUF")
    asked = len(hub.requests)
    for name in ("org/tiny-GGUF", "org/tiny-GGUF:Q4_K_M", "hf.co/org/tiny-GGUF:Q4_K_M", "hf://org/tiny-GGUF"):
        assert store.pull(name).path == store.resolve(name).path
    assert len(hub.requests) == asked


@pytest.mark.parametrize("ref", ["org/tiny-GGUF:Q8_0", "org/tiny-GGUF:q8_0", "org/tiny-GGUF:tiny-Q8_0.gguf"])
def test_a_quantisation_or_file_can_be_named(hub: Standin, store: Store, ref: str):
    assert store.pull(ref).bytes == 5000


def test_a_missing_quantisation_names_those_there_are(hub: Standin, store: Store):
    with pytest.raises(ModelNotFound) as e:
        store.pull("org/tiny-GGUF:Q2_K")
    assert e.value.hint == "it has Q4_K_M, Q8_0"


def test_shards_are_fetched_together_in_order(standin: Standin, store: Store):
    names = [f"Q4_K_M/big-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    standin.files = {n: noise(1000, i) for i, n in enumerate(names)}
    found = store.pull("org/big")
    assert [p.name for p in found.files] == [Path(n).name for n in names]
    assert found.path == found.files[0]


def test_a_repository_of_safetensors_comes_without_its_pickles(standin: Standin, store: Store):
    standin.files = {
        "config.json": b"{}",
        "model.safetensors": noise(3 * UNIT),
        "pytorch_model.bin": noise(100),
        "tokenizer.json": b"[]",
        "README.md": b"read me",
        "consolidated.safetensors": noise(100),
    }
    found = store.pull("org/tiny")
    assert found.kind == "safetensors"
    held = {p.name for p in found.path.iterdir()} - {"manifest.json"}
    assert held == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_repository_of_pickles_is_refused(standin: Standin, store: Store):
    standin.files = {"config.json": b"{}", "pytorch_model.bin": noise(100)}
    with pytest.raises(UnsupportedModel, match="pickle"):
        store.pull("org/tiny")


def test_two_models_of_one_quantisation_are_not_guessed_between(standin: Standin, store: Store):
    standin.files = {"a-Q4_K_M.gguf": noise(100), "b-Q4_K_M.gguf": noise(100, 1)}
    with pytest.raises(UsageError, match="2 models in Q4_K_M"):
        store.pull("org/two")
    assert store.pull("org/two:b-Q4_K_M.gguf").bytes == 100


def test_bytes_come_from_where_redirects_lead_and_the_token_stays_at_home(
    hub: Standin, settings, store: Store
):
    with serving(Standin(files={"tiny-Q4_K_M.gguf": BODY})) as cdn:
        hub.redirect_to = cdn.url
        found = Store(replace(settings, hub_token="secret")).pull("org/tiny-GGUF")
        assert found.path.read_bytes() == BODY
        assert all("Authorization" not in headers for _, headers in cdn.requests)
    at_hub = [headers for path, headers in hub.requests if "/resolve/" in path]
    assert at_hub and all(h["Authorization"] == "Bearer secret" for h in at_hub)
    assert len(at_hub) <= 5, "later ranges go straight to where the first was led"


def test_an_expired_address_is_asked_for_again(hub: Standin, store: Store):
    with serving(Standin(files={"tiny-Q4_K_M.gguf": BODY}, throttle_s=0.005)) as cdn:
        hub.redirect_to = cdn.url
        expired: list[bool] = []

        def expire(event: Event) -> None:
            if isinstance(event, Progress) and event.done > SIZE // 3 and not expired:
                expired.append(True)
                cdn.statuses += [(403, {})]

        assert store.pull("org/tiny-GGUF", expire).digest == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("token", ["", "wrong"])
def test_a_gated_model_says_where_its_licence_is(hub: Standin, settings, token: str):
    hub.gated, hub.token = "manual", "right"
    with pytest.raises(AccessDenied) as e:
        Store(replace(settings, hub_token=token)).pull("org/tiny-GGUF")
    assert e.value.hint == f"accept the licence at {hub.url}/org/tiny-GGUF, then set HF_TOKEN"
    assert Store(replace(settings, hub_token="right")).pull("org/tiny-GGUF").bytes == SIZE


def test_a_repository_that_is_not_there_is_not_found(hub: Standin, store: Store):
    with pytest.raises(ModelNotFound, match="has nothing at"):
        store.pull("missing/tiny")


def test_a_busy_server_is_asked_again_after_the_time_it_names(hub: Standin, store: Store):
    hub.statuses = [(429, {"Retry-After": "0"}), (503, {}), (500, {})]
    assert store.pull("org/tiny-GGUF").bytes == SIZE


def test_a_server_that_wants_hours_is_an_error(hub: Standin, store: Store):
    hub.statuses = [(429, {"Retry-After": "3600"})]
    with pytest.raises(DownloadFailed, match="asks to wait 3600 s"):
        store.pull("org/tiny-GGUF")


def test_a_server_that_stays_broken_is_given_up(hub: Standin, store: Store):
    hub.statuses = [(500, {})] * 6
    with pytest.raises(DownloadFailed, match=r"HTTP 500 \(6 tries\)"):
        store.pull("org/tiny-GGUF")


def test_a_body_cut_short_is_continued_from_its_last_byte(hub: Standin, store: Store):
    hub.close_after = [UNIT // 2, 10, UNIT // 3, 0, 7]
    events: list[Event] = []
    assert store.pull("org/tiny-GGUF", events.append).digest == hashlib.sha256(BODY).hexdigest()
    assert hub.sent == SIZE, "no byte is fetched twice"
    assert "trying again" in notes(events)


def test_a_server_without_ranges_is_read_in_one_stream(hub: Standin, store: Store):
    hub.ranges = False
    hub.close_after = [100, 3 * UNIT + 5]
    events: list[Event] = []
    assert store.pull("org/tiny-GGUF", events.append).digest == hashlib.sha256(BODY).hexdigest()
    assert "ignores ranges" in notes(events)


def test_a_wrong_digest_deletes_the_part(hub: Standin, store: Store):
    hub.digests = {"tiny-Q4_K_M.gguf": "0" * 64}
    with pytest.raises(DownloadFailed, match="has digest"):
        store.pull("org/tiny-GGUF")
    assert not parts(store)
    hub.digests = {}
    assert store.pull("org/tiny-GGUF").bytes == SIZE


def stop_halfway(event: Event) -> None:
    if isinstance(event, Progress) and event.done > SIZE // 2:
        raise KeyboardInterrupt


def test_an_interrupted_pull_is_listed_and_resumes(hub: Standin, store: Store):
    hub.throttle_s = 0.02
    with pytest.raises(KeyboardInterrupt):
        store.pull("org/tiny-GGUF", stop_halfway)
    listed = store.list()[0]
    assert (listed.name, listed.state, listed.bytes) == ("org/tiny-GGUF:Q4_K_M", "incomplete", SIZE)
    assert listed.held > 0
    hub.throttle_s, hub.sent = 0.0, 0
    assert store.pull("org/tiny-GGUF").digest == hashlib.sha256(BODY).hexdigest()
    assert hub.sent <= SIZE - listed.held


def test_a_file_that_changed_between_attempts_starts_over(hub: Standin, store: Store):
    hub.throttle_s = 0.02
    with pytest.raises(KeyboardInterrupt):
        store.pull("org/tiny-GGUF", stop_halfway)
    changed = noise(SIZE, 7)
    hub.files["tiny-Q4_K_M.gguf"], hub.throttle_s = changed, 0.0
    events: list[Event] = []
    assert store.pull("org/tiny-GGUF", events.append).path.read_bytes() == changed
    assert "another version" in notes(events)


def test_a_file_that_changes_under_the_download_starts_over(standin: Standin, store: Store):
    standin.files = {"m.gguf": BODY}
    changed = noise(SIZE, 7)

    def change(event: Event) -> None:
        if isinstance(event, Progress) and event.done > SIZE // 3:
            standin.files["m.gguf"], standin.etag = changed, '"v2"'

    standin.throttle_s = 0.01
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        change(event)

    found = store.pull(f"{standin.url}/m.gguf", watch)
    assert found.path.read_bytes() == changed
    assert "changed at the source" in notes(events)


def test_offline_mode_names_what_is_missing(hub: Standin, settings):
    with pytest.raises(Offline, match="org/tiny-GGUF is not downloaded"):
        Store(replace(settings, offline=True)).pull("org/tiny-GGUF")
    assert not hub.requests


def test_a_second_pull_waits_for_the_first_and_fetches_nothing(hub: Standin, store: Store, settings):
    hub.throttle_s = 0.01
    first = threading.Thread(target=store.pull, args=("org/tiny-GGUF",))
    first.start()
    while not parts(store):
        pass
    events: list[Event] = []
    found = Store(settings).pull("org/tiny-GGUF", events.append)
    first.join()
    assert "another process is pulling" in notes(events)
    assert found.bytes == SIZE
    assert hub.sent == SIZE


@pytest.mark.parametrize(
    "info",
    [{}, {"sha": "x", "siblings": []}, {"sha": "a" * 40, "siblings": [{"rfilename": "a.gguf", "size": -1}]}],
)
def test_a_senseless_answer_is_a_named_error(hub: Standin, store: Store, monkeypatch, info):
    monkeypatch.setattr(hub, "info", lambda: info)
    with pytest.raises(DownloadFailed, match="makes no sense"):
        store.pull("org/tiny")


def test_a_file_name_that_leaves_the_folder_is_refused(standin: Standin, store: Store):
    standin.files = {"x\\..\\evil-Q4_K_M.gguf": noise(100)}
    with pytest.raises(Exception, match="leads out of"):
        store.pull("org/evil")


def test_a_url_is_pulled_and_found_again(standin: Standin, store: Store):
    standin.files = {"files/m.gguf": BODY}
    url = f"{standin.url}/files/m.gguf"
    assert store.pull(url).digest == hashlib.sha256(BODY).hexdigest()
    assert store.resolve(url).path.name == "m.gguf"


def test_a_url_that_is_no_model_is_refused_before_the_download(standin: Standin, store: Store):
    standin.files = {"m.gguf": b"<html>" * 100_000}
    with pytest.raises(DownloadFailed, match="not a GGUF file"):
        store.pull(f"{standin.url}/m.gguf")


def test_a_url_of_untold_length_is_pulled(standin: Standin, store: Store):
    standin.files, standin.ranges, standin.length = {"m.gguf": BODY}, False, False
    assert store.pull(f"{standin.url}/m.gguf").path.read_bytes() == BODY
