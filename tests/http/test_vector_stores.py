"""/v1/vector_stores: filled, searched, filtered, each key its own; by OpenAI's client too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from freehold.serve.http.core.keys import Ring, key_of
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.vector_stores import compiled_filter
from tests.documents.conftest import docx, paragraph
from tests.http.conftest import Running, start
from tests.http.fakes import Script

URL = "/v1/vector_stores"
MODEL = {"embedding_model": "fake:1b"}


@pytest.fixture
def server(serving: Callable[..., Running], tmp_path: Path) -> Running:
    return serving(Script(), home=tmp_path / "data")


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def until_done(ask: Callable[[], Any]) -> Any:
    """Ask until nothing is in progress."""
    for _ in range(600):
        answer = ask()
        if answer["status"] != "in_progress":
            return answer
        time.sleep(0.05)
    raise AssertionError(answer)


def uploaded(server: Running, text: str | bytes, name: str = "a.txt", **headers: str) -> str:
    files = {"file": (name, text if isinstance(text, bytes) else text.encode())}
    answer = server.client.post("/v1/files", data={"purpose": "assistants"}, files=files, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def stored(server: Running, *texts: str, **more: Any) -> str:
    """Return the id of a store with these texts, once they are indexed."""
    ids = [uploaded(server, text, f"{n}.txt") for n, text in enumerate(texts)]
    made = server.client.post(URL, json={**MODEL, "file_ids": ids, **more}).json()
    done = until_done(lambda: server.client.get(f"{URL}/{made['id']}").json())
    assert done["file_counts"]["completed"] == len(texts), done
    return made["id"]


def found(server: Running, store: str, query: str, **more: Any) -> list[dict[str, Any]]:
    answer = server.client.post(f"{URL}/{store}/search", json={"query": query, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_the_openai_client_fills_and_searches_a_store(client: openai.OpenAI):
    store = client.vector_stores.create(name="Notes", metadata={"a": "b"}, extra_body=MODEL)
    assert (store.name, store.metadata, store.status, store.file_counts.total) == (
        "Notes",
        {"a": "b"},
        "completed",
        0,
    )
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id,
        file=("toner.txt", b"The printer takes toner TN-247."),
        attributes={"year": 2025},
    )
    assert (file.status, file.attributes, file.last_error) == ("completed", {"year": 2025.0}, None)
    other = client.files.create(file=("b.md", b"# Backups\n\nThey run at two."), purpose="user_data")
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[other.id])
    assert (batch.status, batch.file_counts.completed, batch.file_counts.total) == ("completed", 1, 1)
    assert [
        f.id for f in client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    ] == [other.id]
    page = client.vector_stores.search(store.id, query="which toner?", max_num_results=1)
    (hit,) = page.data
    assert (hit.filename, hit.file_id) == ("toner.txt", file.id) and hit.content[
        0
    ].text == "The printer takes toner TN-247."
    assert 0 < hit.score <= 1 and hit.attributes == {"year": 2025.0}
    assert {f.id for f in client.vector_stores.files.list(store.id)} == {file.id, other.id}
    assert [c.text for c in client.vector_stores.files.content(file.id, vector_store_id=store.id)] == [
        hit.content[0].text
    ]
    changed = client.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"year": 1})
    assert changed.attributes == {"year": 1.0}
    changed_store = client.vector_stores.update(
        store.id, name="Other", expires_after={"anchor": "last_active_at", "days": 1}
    )
    assert changed_store.name == "Other" and changed_store.expires_at is not None
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 2
    assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
    assert all(hit.file_id == other.id for hit in client.vector_stores.search(store.id, query="toner").data)
    assert store.id in {s.id for s in client.vector_stores.list()}
    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    assert client.files.retrieve(other.id).id == other.id  # the file itself stays


def test_a_file_that_cannot_be_read_fails_with_its_reason(server: Running):
    store = server.client.post(URL, json=MODEL).json()["id"]
    for text, name, code in (
        (b"\0\1", "x.bin", "unsupported_file"),
        (b"PK\x03\x04", "x.docx", "invalid_file"),
    ):
        id = uploaded(server, text, name)
        server.client.post(f"{URL}/{store}/files", json={"file_id": id})
        done = until_done(lambda id=id: server.client.get(f"{URL}/{store}/files/{id}").json())
        assert done["status"] == "failed" and done["last_error"]["code"] == code
        assert "/" not in done["last_error"]["message"]
    assert [f["id"] for f in server.client.get(f"{URL}/{store}/files?filter=completed").json()["data"]] == []


def test_a_word_document_is_read_in_a_child(server: Running):
    store = server.client.post(URL, json=MODEL).json()["id"]
    id = uploaded(server, docx(paragraph("The contract ends in May.")), "contract.docx")
    server.client.post(f"{URL}/{store}/files", json={"file_id": id})
    done = until_done(lambda: server.client.get(f"{URL}/{store}/files/{id}").json())
    assert (
        done["status"] == "completed" and found(server, store, "contract")[0]["filename"] == "contract.docx"
    )


def test_files_are_filtered_by_their_attributes(server: Running):
    store = server.client.post(URL, json=MODEL).json()["id"]
    for year in (2020, 2025):
        id = uploaded(server, f"toner of {year}", f"{year}.txt")
        server.client.post(f"{URL}/{store}/files", json={"file_id": id, "attributes": {"year": year}})
        until_done(lambda id=id: server.client.get(f"{URL}/{store}/files/{id}").json())
    newer = {"type": "gt", "key": "year", "value": 2021}
    assert [hit["filename"] for hit in found(server, store, "toner", filters=newer)] == ["2025.txt"]
    either = {"type": "or", "filters": [newer, {"type": "eq", "key": "year", "value": 2020}]}
    assert len(found(server, store, "toner", filters=either)) == 2


@pytest.mark.parametrize(
    "raw, own, wanted",
    [
        ({"type": "eq", "key": "a", "value": "x"}, {"a": "x"}, True),
        ({"type": "ne", "key": "a", "value": "x"}, {}, True),
        ({"type": "gte", "key": "a", "value": 2}, {"a": 2}, True),
        ({"type": "lt", "key": "a", "value": 2}, {"a": "x"}, False),
        ({"type": "in", "key": "a", "value": ["x", "y"]}, {"a": "y"}, True),
        ({"type": "nin", "key": "a", "value": ["x"]}, {"a": "x"}, False),
        ({"type": "and", "filters": [{"type": "eq", "key": "a", "value": 1}]}, {"a": 1}, True),
    ],
)
def test_filters_compare(raw: dict[str, Any], own: dict[str, Any], wanted: bool):
    assert compiled_filter(raw)(own) is wanted


@pytest.mark.parametrize(
    "raw",
    [
        [],
        {"type": "eq"},
        {"type": "like", "key": "a", "value": 1},
        {"type": "in", "key": "a", "value": "x"},
        {"type": "and", "filters": []},
        {"type": "and", "filters": [{"type": "eq", "key": "a", "value": 1}] * 101},
        {"type": ["eq"], "key": "a", "value": 1},
    ],
)
def test_what_is_no_filter_is_refused(raw: object):
    with pytest.raises(Refused):
        compiled_filter(raw)


def test_filters_that_nest_without_end_are_refused(server: Running):
    raw: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
    for _ in range(20):
        raw = {"type": "and", "filters": [raw]}
    store = server.client.post(URL, json=MODEL).json()["id"]
    answer = server.client.post(f"{URL}/{store}/search", json={"query": "x", "filters": raw})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "filters"


@pytest.mark.parametrize("body", [{"query": ""}, {"query": []}, {"query": ["x"] * 9}, {"query": "x" * 9_000}])
def test_a_query_that_is_none_is_refused(server: Running, body: dict[str, Any]):
    store = server.client.post(URL, json=MODEL).json()["id"]
    answer = server.client.post(f"{URL}/{store}/search", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "query"


def test_no_key_sees_the_stores_of_another(serving: Callable[..., Running], tmp_path: Path):
    ring = Ring([key_of("ann", "a" * 20), key_of("bob", "b" * 20)])
    server = serving(Script(), home=tmp_path / "data", keys=ring)
    ann, bob = ({"Authorization": f"Bearer {letter * 20}"} for letter in "ab")
    store = server.client.post(URL, json=MODEL, headers=ann).json()["id"]
    id = uploaded(server, "secret toner", **ann)
    assert server.client.post(f"{URL}/{store}/files", json={"file_id": id}, headers=ann).status_code == 200
    for method, path in (
        ("GET", f"{URL}/{store}"),
        ("POST", f"{URL}/{store}"),
        ("DELETE", f"{URL}/{store}"),
        ("GET", f"{URL}/{store}/files"),
        ("GET", f"{URL}/{store}/files/{id}/content"),
        ("GET", f"{URL}/../../{store}"),
    ):
        body = {"json": {}} if method == "POST" else {}
        assert server.client.request(method, path, headers=bob, **body).status_code == 404
    answer = server.client.post(f"{URL}/{store}/search", json={"query": "toner"}, headers=bob)
    assert answer.status_code == 404 and server.client.get(URL, headers=bob).json()["data"] == []
    own = server.client.post(URL, json=MODEL, headers=bob).json()["id"]
    answer = server.client.post(f"{URL}/{own}/files", json={"file_id": id}, headers=bob)
    assert answer.status_code == 404  # nor files of another


@pytest.mark.parametrize("id", ["%2e%2e", ".hidden", "vs_none", "a" * 300])
def test_an_id_leads_to_no_other_file(server: Running, id: str):
    assert server.client.get(f"{URL}/{id}/files").status_code == 404


def test_labels_of_a_store_go_with_every_request_that_uses_it(
    serving: Callable[..., Running], tmp_path: Path
):
    server = serving(Script(), home=tmp_path / "data")
    answer = server.client.post(URL, json=MODEL, headers={"X-Freehold-Label": "private"})
    store = answer.json()["id"]
    assert answer.json()["labels"] == ["private"]
    id = uploaded(server, "toner abc")
    server.client.post(f"{URL}/{store}/files", json={"file_id": id})
    until_done(lambda: server.client.get(f"{URL}/{store}/files/{id}").json())
    before = len(server.models.origins)
    found(server, store, "toner")
    ask = {
        "model": "fake:1b",
        "input": "Which toner?",
        "tools": [{"type": "file_search", "vector_store_ids": [store]}],
    }
    assert server.client.post("/v1/responses", json=ask).status_code == 200
    used = server.models.origins[before:]
    assert used and all("private" in origin.labels for origin in used)


def test_a_server_that_starts_again_continues_what_was_left(tmp_path: Path):
    home = tmp_path / "data"
    first = start(tmp_path / "1", Script(count_delay=30.0), home=home)
    try:
        store = first.client.post(URL, json=MODEL).json()["id"]
        id = uploaded(first, "the toner")
        first.client.post(f"{URL}/{store}/files", json={"file_id": id})
        assert first.client.get(f"{URL}/{store}").json()["status"] == "in_progress"
    finally:
        first.end()
    second = start(tmp_path / "2", Script(), home=home)
    try:
        done = until_done(lambda: second.client.get(f"{URL}/{store}").json())
        assert done["file_counts"]["completed"] == 1 and found(second, store, "toner")
    finally:
        second.end()


def test_a_cancelled_batch_indexes_nothing_more(serving: Callable[..., Running], tmp_path: Path):
    server = serving(Script(count_delay=0.5), home=tmp_path / "data")
    store = server.client.post(URL, json=MODEL).json()["id"]
    ids = [uploaded(server, f"text {n}") for n in range(5)]
    batch = server.client.post(f"{URL}/{store}/file_batches", json={"file_ids": ids}).json()["id"]
    done = server.client.post(f"{URL}/{store}/file_batches/{batch}/cancel").json()
    assert done["status"] == "cancelled" and done["file_counts"]["cancelled"] >= 4
    assert server.client.get(f"{URL}/{store}/file_batches/vsfb_none").status_code == 404


def test_what_is_not_used_is_said(server: Running):
    strategy = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}
    answer = server.client.post(URL, json={**MODEL, "chunking_strategy": strategy, "mood": 1}).json()
    warnings = " ".join(answer["freehold"]["warnings"])
    assert "chunk_overlap_tokens" in warnings and "mood" in warnings


# --- file_search of responses


def asked(server: Running, store: str, **more: Any) -> dict[str, Any]:
    tool = {"type": "file_search", "vector_store_ids": [store], **more.pop("tool", {})}
    body = {"model": "fake:1b", "input": "Which toner?", "tools": [tool], **more}
    answer = server.client.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


TEXT = "The printer takes toner TN-247 [1]. Elephants fly."


def test_a_response_searches_cites_and_is_checked(serving: Callable[..., Running], tmp_path: Path):
    server = serving(Script(text=TEXT), home=tmp_path / "data")
    store = stored(server, "The printer takes toner TN-247.", "Backups run at two.")
    body = asked(server, store, include=["file_search_call.results"])
    search, message = body["output"][0], body["output"][-1]
    assert (search["type"], search["status"], search["queries"]) == (
        "file_search_call",
        "completed",
        ["Which toner?"],
    )
    assert search["results"][0]["filename"] == "0.txt" and search["results"][0]["text"].endswith("TN-247.")
    (note,) = message["content"][0]["annotations"]
    assert note["type"] == "file_citation" and note["filename"] == "0.txt"
    assert TEXT[note["index"] :].lstrip().startswith("[1]")
    prompt = server.models.served["fake:1b"].jobs[-1].messages[-1].content
    assert "TN-247" in prompt and prompt.endswith("Question: Which toner?")


def test_a_sentence_without_a_mark_is_annotated_too(serving: Callable[..., Running], tmp_path: Path):
    server = serving(Script(text="The printer takes toner TN-247."), home=tmp_path / "data")
    store = stored(server, "The printer takes toner TN-247.")
    (note,) = asked(server, store)["output"][-1]["content"][0]["annotations"]
    assert note["index"] == len("The printer takes toner TN-247.")


def test_the_openai_client_streams_a_search_with_its_annotations(
    serving: Callable[..., Running], tmp_path: Path
):
    server = serving(Script(text=TEXT), home=tmp_path / "data")
    store = stored(server, "The printer takes toner TN-247.")
    tools: Any = [{"type": "file_search", "vector_store_ids": [store]}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(model="fake:1b", input="Which toner?", tools=tools) as stream:
            kinds = [event.type for event in stream]
            last = stream.get_final_response()
        again = client.responses.create(
            model="fake:1b",
            input=[*last.output, {"role": "user", "content": "And now?"}],
            tools=tools,  # type: ignore[list-item]
        )
    for kind in ("in_progress", "searching", "completed"):
        assert f"response.file_search_call.{kind}" in kinds
    assert "response.output_text.annotation.added" in kinds
    assert last.output[0].type == "file_search_call" and last.output_text == TEXT
    assert again.output[0].type == "file_search_call"


def test_a_chat_continues_without_the_passages_of_before(serving: Callable[..., Running], tmp_path: Path):
    server = serving(Script(text=TEXT), home=tmp_path / "data")
    store = stored(server, "The printer takes toner TN-247.")
    first = asked(server, store)
    body = {"model": "fake:1b", "input": "Thanks", "previous_response_id": first["id"]}
    assert server.client.post("/v1/responses", json=body).status_code == 200
    messages = server.models.served["fake:1b"].jobs[-1].messages
    assert [m.role for m in messages] == ["user", "assistant", "user"] and messages[
        0
    ].content == "Which toner?"


def test_a_search_that_is_not_wanted_or_leads_nowhere(serving: Callable[..., Running], tmp_path: Path):
    server = serving(Script(text=TEXT), home=tmp_path / "data")
    store = stored(server, "The printer takes toner TN-247.")
    assert asked(server, store, tool_choice="none")["output"][0]["type"] != "file_search_call"
    assert (
        asked(server, store, tool_choice={"type": "file_search"})["output"][0]["type"] == "file_search_call"
    )
    body = {
        "model": "fake:1b",
        "input": "x",
        "tools": [{"type": "file_search", "vector_store_ids": ["vs_none"]}],
    }
    assert server.client.post("/v1/responses", json=body).status_code == 404
    body["tools"] = [{"type": "file_search"}]
    assert server.client.post("/v1/responses", json=body).status_code == 400
