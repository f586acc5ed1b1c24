"""Ollama's routes that look at the store or change it: who may, what is refused, and what a client sees."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from typing import Any

import pytest

from freehold.run.formats import open_lora
from freehold.run.formats.filemap import cannot_read
from freehold.run.store.create import parse
from freehold.run.store.parameters import HONOURED
from freehold.serve.http.core.keys import Ring
from freehold.serve.http.ollama import store as creating
from freehold.serve.http.ollama.store import STALE_S, model_of
from tests.http.conftest import TOKEN
from tests.http.fakes import FakeServed
from tests.http.ollama_rig import error_of, lines, refused, with_tiny
from tests.http.test_auth import ANN, KEYS
from tests.http.test_door import bearer, key
from tests.http.test_files import files_of_at_most, with_free
from tests.http.test_streams import connect, eventually, until
from tests.store.standin import Standin
from tests.store.standin import serving as hub_serving
from tests.vectors.adapters import Case, write_peft
from tests.vectors.adapters import write_gguf as write_lora
from tests.vectors.files import write_gguf

MODELFILE = '''
# a plumber
FROM tiny
PARAMETER temperature 1
PARAMETER stop END
system """You are Mario,
of Brooklyn."""
MESSAGE user hi
MESSAGE assistant It's-a me!
TEMPLATE {{ .Prompt }}
'''
CHANGES = {
    "/api/pull": {"model": "tiny"},
    "/api/create": {"model": "x", "from": "tiny"},
    "/api/copy": {"source": "tiny", "destination": "x"},
    "/api/delete": {"model": "tiny"},
    f"/api/blobs/sha256:{'0' * 64}": {},
}


@pytest.fixture
def stocked(serving, tmp_path):
    server = serving(drain_s=0.1)
    with_tiny(server.store, tmp_path / "files")
    return server


def create(server, **fields):
    answer = server.owner.post("/api/create", json={"model": "mario", "from": "tiny", **fields})
    assert answer.status_code == 200, answer.text
    return lines(answer.text)


def in_memory(server, name):
    server.models.in_memory[name] = FakeServed(name, server.models.script)


# --- who may -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", CHANGES)
def test_a_key_that_may_ask_may_not_change_the_disk(serving, tmp_path, route):
    server = serving(keys=KEYS)
    with_tiny(server.store, tmp_path / "files")
    method = "DELETE" if route.endswith("delete") else "POST"
    answer = server.client.request(method, route, json=CHANGES[route], headers={"x-api-key": ANN})
    assert "owner" in error_of(answer, 403) or "server's machine" in error_of(answer, 403)
    assert [m.name for m in server.store.list()] == ["tiny"]


def test_an_admins_key_may_change_the_disk(serving, tmp_path):
    server = serving(keys=Ring([key("ann"), key("root", kind="admin")]))
    with_tiny(server.store, tmp_path / "files")
    copied = {"source": "tiny", "destination": "x"}
    assert server.client.post("/api/copy", json=copied, headers=bearer("root")).status_code == 200
    assert server.store.overlays.find("x").base == "tiny"
    gone = server.client.request("DELETE", "/api/delete", json={"model": "x"}, headers=bearer("root"))
    assert gone.status_code == 200 and server.store.overlays.find("x") is None


@pytest.mark.parametrize("route", CHANGES)
def test_a_server_that_strangers_reach_without_a_key_changes_nothing_for_them(serving, tmp_path, route):
    server = serving(insecure=True)
    with_tiny(server.store, tmp_path / "files")
    method = "DELETE" if route.endswith("delete") else "POST"
    assert "admin key" in error_of(server.client.request(method, route, json=CHANGES[route]), 403)
    assert [m.name for m in server.store.list()] == ["tiny"]


def test_the_owners_socket_may_whatever_keys_there_are(serving, tmp_path):
    server = serving(keys=KEYS)
    with_tiny(server.store, tmp_path / "files")
    answer = server.admin.post("/api/copy", json={"source": "tiny", "destination": "x"})
    assert answer.status_code == 200, answer.text
    assert server.store.overlays.find("x").base == "tiny"


# --- looking -----------------------------------------------------------------------------------------------


def test_show_tells_the_file_and_how_it_is_used(stocked):
    body = stocked.client.post("/api/show", json={"name": "tiny", "verbose": True}).json()
    assert body["model_info"]["general.parameter_count"] > 0
    assert body["model_info"]["tokenizer.ggml.tokens"] is None and body["tensors"]
    assert set(body["details"]) == {
        *("parent_model", "format", "family", "families", "parameter_size", "quantization_level")
    }
    names = {line.split()[0] for line in body["parameters"].splitlines()}
    assert names <= set(HONOURED)


def test_show_of_a_file_of_this_machine_is_not_found(stocked):
    for name in ("/etc/passwd", "./tiny.gguf", "nope"):
        answer = stocked.client.post("/api/show", json={"model": name})
        assert error_of(answer, 404).startswith(f"model '{name}' not found")
    assert "missing" in error_of(stocked.client.post("/api/show", json={}), 400)
    assert "system" in error_of(stocked.client.post("/api/show", json={"model": "tiny", "system": "x"}), 400)


def test_ps_tells_when_a_model_leaves(stocked):
    stocked.client.post("/api/generate", json={"model": "fake:1b"})
    (row,) = stocked.client.get("/api/ps").json()["models"]
    assert row["expires_at"].startswith("9999") and row["context_length"] == 4096 and row["size_vram"] == 0
    stocked.models.in_memory["fake:1b"].loaded.expires_at = 1_700_000_000.0
    (row,) = stocked.client.get("/api/ps").json()["models"]
    assert row["expires_at"] == "2023-11-14T22:13:20Z"


# --- making ------------------------------------------------------------------------------------------------


def test_a_modelfile_makes_what_fields_make(stocked):
    told = create(stocked, modelfile=MODELFILE)
    assert told[-1] == {"status": "success"}
    assert any("Go's language" in t["status"] for t in told)
    by_file = stocked.store.overlays.find("mario")
    create(
        stocked,
        parameters={"temperature": 1.0, "stop": ["END"]},
        system="You are Mario,\nof Brooklyn.",
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me!"}],
    )
    by_fields = stocked.store.overlays.find("mario")
    for field in ("base", "parameters", "system", "messages"):
        assert getattr(by_file, field) == getattr(by_fields, field), field


def test_what_is_made_of_something_made_stands_on_the_same_model(stocked):
    create(stocked, system="A", parameters={"top_k": 5, "seed": 1})
    create(stocked, model="luigi", **{"from": "mario"}, parameters={"seed": 2})
    made = stocked.store.overlays.find("luigi")
    assert (made.base, made.system, made.parameters) == ("tiny", "A", {"top_k": 5, "seed": 2})


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"model": "tiny"}, "a model of its own"),
        ({"model": "no good name!"}, "is not a model's name"),
        ({"model": "../x"}, "model is"),
        ({"from": "/etc/passwd"}, "from is"),
        ({"from": "http://127.0.0.1:9/x.gguf"}, "from is"),
        ({"from": None}, "from is missing"),
        ({"parameters": {"temprature": 1}}, "temprature"),
        ({"parameters": {"temperature": -1}}, "temperature"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"template": "no loop over anything"}, "TEMPLATE"),
        ({"template": "{% for m in messages %}"}, "template"),
        ({"system": "x" * (1 << 19)}, "characters"),
        ({"modelfile": "FROM tiny\nPARAMETER seed x"}, "line 2"),
        ({"modelfile": "ADAPTER x.gguf\nFROM tiny"}, "ADAPTER"),
        ({"quantize": "q4_0"}, "quantize"),
        ({"adapters": {"a": "sha256:" + "0" * 64}}, "no blob"),
        ({"adapters": {"a": "sha256:" + "0" * 64, "b": "sha256:" + "0" * 64}}, "adapters has 2 files"),
        ({"files": {"a": "sha256:" + "0" * 64}, "from": None}, "no blob"),
        ({"files": {"a": "x"}, "from": None}, "not a digest"),
        ({"files": {"a": "x", "b": "x", "c": "x"}, "from": None}, "files has 3; expected a GGUF file"),
        ({"files": {"a": "sha256:" + "0" * 64}}, "two bases"),
    ],
)
def test_what_cannot_be_made_is_refused(stocked, fields, part):
    in_memory(stocked, "mario")
    said = refused(stocked, "/api/create", **{"model": "mario", "from": "tiny", **fields})
    assert part in said
    assert stocked.store.overlays.list() == []
    assert [each.name for each in stocked.models.loaded()] == ["mario"]


def test_what_is_made_takes_the_place_of_what_is_in_memory(stocked):
    for ask in (
        lambda: create(stocked),
        lambda: stocked.owner.post("/api/copy", json={"source": "tiny", "destination": "mario"}),
    ):
        in_memory(stocked, "mario")
        ask()
        assert stocked.models.loaded() == []


def test_a_recipe_that_is_refused_costs_no_blob_its_place(stocked, tmp_path):
    data = write_gguf("llama", tmp_path / "x.gguf", dtype="Q8_0").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert stocked.owner.post(f"/api/blobs/{digest}", content=data).status_code == 201
    said = refused(stocked, "/api/create", model="mario", files={"x.gguf": digest}, template="no loop")
    assert "TEMPLATE" in said and [m.name for m in stocked.store.list()] == ["tiny"]


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_an_adapter_comes_in_blobs(stocked, tmp_path, form):
    case = Case("llama", targets=("q_proj",))
    path = write_peft(case, tmp_path / "lora") if form == "peft" else write_lora(case, tmp_path / "lora.gguf")
    sent = {}
    for file in path.iterdir() if path.is_dir() else [path]:
        sent[file.name] = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        assert (
            stocked.owner.post(f"/api/blobs/{sent[file.name]}", content=file.read_bytes()).status_code == 201
        )
    assert create(stocked, adapters=sent)[-1] == {"status": "success"}
    made = stocked.store.overlays.find("mario")
    assert open_lora(made.adapter).digest == open_lora(path).digest
    assert not list((stocked.store.settings.home / "blobs").iterdir())
    shown = stocked.client.post("/api/show", json={"model": "mario"}).json()["modelfile"]
    assert "ADAPTER" in shown and str(tmp_path) not in shown


@pytest.mark.parametrize(
    "text", ['say """hi"""\nand "bye"', 'a "word"', '"', "two\nlines", '\\n is """no\\" end"""']
)
def test_a_shown_modelfile_makes_the_model_again(stocked, text):
    create(stocked, system=text)
    shown = stocked.client.post("/api/show", json={"model": "mario"}).json()["modelfile"]
    assert parse(shown).system == text


def test_a_base_that_is_not_here_is_fetched(serving, tmp_path):
    path = write_gguf("llama", tmp_path / "x.gguf", dtype="Q8_0")
    with hub_serving(Standin(files={"tiny-Q8_0.gguf": path.read_bytes()})) as hub:
        server = serving(hub=hub.url)
        told = create(server, **{"from": "org/tiny-GGUF"})
    assert any("completed" in t for t in told)
    assert server.store.resolve("mario").overlay.base == "org/tiny-GGUF:Q8_0"
    assert refused(server, "/api/create", 404, model="y", **{"from": "nowhere"}).startswith(
        "model 'nowhere' not"
    )


# --- deleting ----------------------------------------------------------------------------------------------


def test_a_model_that_others_stand_on_stays(stocked):
    create(stocked)
    in_memory(stocked, "tiny")
    answer = stocked.owner.request("DELETE", "/api/delete", json={"model": "tiny"})
    assert "mario is based on" in error_of(answer, 400)
    assert [each.name for each in stocked.models.loaded()] == ["tiny"]
    for name in ("mario:latest", "tiny"):
        assert stocked.owner.request("DELETE", "/api/delete", json={"name": name}).status_code == 200
    assert stocked.store.list() == [] and stocked.models.loaded() == []
    error_of(stocked.owner.request("DELETE", "/api/delete", json={"model": "tiny"}), 404)


def test_copying_what_is_not_there_is_not_found(stocked):
    answer = stocked.owner.post("/api/copy", json={"source": "nope", "destination": "x"})
    assert error_of(answer, 404).startswith("model 'nope' not found")


# --- blobs -------------------------------------------------------------------------------------------------


def test_a_blob_is_kept_only_if_its_digest_is_right(stocked):
    body = b"x" * 9_000_000
    digest = hashlib.sha256(body).hexdigest()
    route, wrong = f"/api/blobs/sha256:{digest}", f"/api/blobs/sha256:{'0' * 64}"
    assert stocked.owner.head(route).status_code == 404
    assert "not the one" in error_of(stocked.owner.post(wrong, content=body), 400)
    assert stocked.owner.post(route, content=body).status_code == 201
    assert stocked.owner.post(route, content=body).status_code == 200
    assert stocked.owner.head(route).status_code == 200
    assert [p.name for p in (stocked.store.settings.home / "blobs").iterdir()] == [f"sha256-{digest}"]
    said = refused(stocked, "/api/create", model="x", files={"x.gguf": f"sha256:{digest}"})
    assert "not a model" in said


def sent(server, data: bytes) -> str:
    """Send a blob; return its digest."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert server.owner.post(f"/api/blobs/{digest}", content=data).status_code in (200, 201)
    return digest


def blobs(server) -> list[str]:
    return [path.name.replace("-", ":") for path in (server.store.settings.home / "blobs").iterdir()]


@pytest.mark.parametrize("field", ["files", "adapters"])
def test_a_blob_that_nothing_can_be_made_of_goes_and_may_come_again(stocked, field):
    """No route removes a blob, and no other file has its digest: it lay there for good."""
    digest = sent(stocked, b"no model at all")
    fields: dict[str, Any] = {"model": "x", field: {"x.gguf": digest}}
    if field == "adapters":
        fields["from"] = "tiny"
    for _ in range(2):
        said = refused(stocked, "/api/create", 400, **fields)
        assert "this server can read" in said and blobs(stocked) == []
        assert stocked.owner.head(f"/api/blobs/{digest}").status_code == 404
        sent(stocked, b"no model at all")


def test_a_model_that_is_given_as_an_adapter_stays(stocked, tmp_path):
    digest = sent(stocked, write_gguf("llama", tmp_path / "x.gguf", dtype="Q8_0").read_bytes())
    fields: dict[str, Any] = {"model": "x", "adapters": {"x.gguf": digest}, "from": "tiny"}
    said = refused(stocked, "/api/create", 400, **fields)
    assert "not an adapter" in said and blobs(stocked) == [digest]


def test_a_blob_that_the_system_did_not_let_be_read_stays(stocked, monkeypatch):
    def no_files_left(path):
        raise cannot_read(path, OSError(errno.EMFILE, "Too many open files")) from OSError()

    digest = sent(stocked, b"what it is remains unknown")
    monkeypatch.setattr("freehold.serve.http.ollama.store.open_model_file", no_files_left)
    assert "Too many" in refused(stocked, "/api/create", model="x", files={"x.gguf": digest})
    assert blobs(stocked) == [digest]


def test_a_blob_that_is_asked_for_no_more_goes_with_the_next_upload(stocked):
    left, used = sent(stocked, b"left"), sent(stocked, b"used")
    old = time.time() - STALE_S - 60
    for digest in (left, used):
        os.utime(stocked.store.settings.home / "blobs" / digest.replace(":", "-"), (old, old))
    assert stocked.owner.head(f"/api/blobs/{used}").status_code == 200
    new = sent(stocked, b"new")
    assert sorted(blobs(stocked)) == sorted([used, new])


def test_a_blob_that_another_creation_took_is_the_model_it_became(stocked, tmp_path):
    digest = sent(stocked, write_gguf("llama", tmp_path / "x.gguf", dtype="Q8_0").read_bytes())
    took = model_of(stocked.store, [digest.removeprefix("sha256:")])
    assert model_of(stocked.store, [digest.removeprefix("sha256:")]).path == took.path


def test_a_blob_longer_than_a_file_may_be_leaves_nothing(stocked):
    """ulimit -f: the system ends no process that ignores its signal, and says EFBIG."""
    data = bytes(9_000_000)
    route = f"/api/blobs/sha256:{hashlib.sha256(data).hexdigest()}"
    with files_of_at_most(1_000_000):
        said = error_of(stocked.owner.post(route, content=data), 503)
    assert "may not become that long" in said and "ulimit -f" in said
    assert blobs(stocked) == []
    assert stocked.owner.post(route, content=data).status_code == 201


def test_a_blob_that_would_touch_the_disk_s_reserve_is_refused(stocked, monkeypatch):
    with_free(monkeypatch, 50_000)
    route = f"/api/blobs/sha256:{hashlib.sha256(b'x' * 60_000).hexdigest()}"
    assert "for uploads" in error_of(stocked.owner.post(route, content=b"x" * 60_000), 507)
    assert not [*(stocked.store.settings.home / "blobs").iterdir()]


@pytest.mark.parametrize("digest", ["sha256:zz", "md5:0", "sha256:" + "0" * 63, "..%2f..%2fx"])
def test_a_digest_that_is_none_is_refused(stocked, digest):
    assert stocked.owner.post(f"/api/blobs/{digest}", content=b"x").status_code in (400, 404)


def test_a_blob_too_large_is_refused_before_it_is_read(stocked):
    with connect(stocked) as sock:
        lines = f"authorization: Bearer {TOKEN}\r\nhost: localhost\r\ncontent-length: {1 << 50}\r\n\r\n"
        sock.sendall(f"POST /api/blobs/sha256:{'0' * 64} HTTP/1.1\r\n{lines}".encode())
        assert b" 413 " in until(sock, b"\r\n")


# --- pulling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "./x.gguf", "http://127.0.0.1:9/x.gguf", ""])
def test_only_names_are_pulled(stocked, name):
    assert "model is" in refused(stocked, "/api/pull", model=name) or name == ""


def test_a_login_is_refused(stocked):
    assert "insecure" in refused(stocked, "/api/pull", model="tiny", insecure=True)


def test_an_unknown_field_of_a_pull_is_named(stocked):
    asked = {"model": "tiny", "stream": False, "colour": "red"}
    said = stocked.owner.post("/api/pull", json=asked).json()
    assert said["freehold"]["warnings"] == ["unknown field 'colour' was ignored"]


@pytest.mark.heavy
def test_a_client_that_goes_stops_the_download_and_keeps_what_came(serving):
    body = b"GGUF" + bytes(4 << 20)
    with hub_serving(Standin(files={"tiny-Q4_K_M.gguf": body}, throttle_s=0.02)) as hub:
        server = serving(hub=hub.url)
        with server.owner.stream("POST", "/api/pull", json={"model": "org/tiny-GGUF"}) as answer:
            next(line for line in answer.iter_lines() if "completed" in line)
        assert eventually(lambda: server.doors.server.chores == 0)
        (unfinished,) = server.store.list()
        assert unfinished.state == "incomplete"
        hub.throttle_s = 0.0
        told = lines(server.owner.post("/api/pull", json={"model": "org/tiny-GGUF"}).text)
    assert told[-1] == {"status": "success"} and server.store.resolve("org/tiny-GGUF").bytes == len(body)


def test_a_request_learns_from_no_answer_which_files_and_users_there_are(serving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "there").touch()
    server = serving()
    for one, other in (
        ("org/there", "org/gone"),
        ("~root/x", "~no-such-user/x"),
        ("org/../org/there", "a/../b/c"),
    ):
        for path in ("/api/show", "/v1/chat/completions"):
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            answers = [server.client.post(path, json={"model": name, **chat}) for name in (one, other)]
            assert answers[0].status_code == answers[1].status_code >= 400
            texts = [a.text.replace(name, "NAME") for a, name in zip(answers, (one, other), strict=True)]
            assert texts[0] == texts[1]


def test_a_modelfile_is_read_in_a_thread(serving, monkeypatch):
    server, readers, recipe = serving(), [], creating._recipe
    monkeypatch.setattr(
        creating, "_recipe", lambda request: readers.append(threading.current_thread()) or recipe(request)
    )
    answer = server.owner.post("/api/create", json={"model": "x", "modelfile": "FROM a\nFROM b"})
    assert answer.status_code == 400 and "the second FROM" in answer.text
    assert len(readers) == 1 and server.thread not in readers
