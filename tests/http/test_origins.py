"""Where a request comes from reaches its model by every route, with its labels and the id of its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.serve.http.app import routes
from freehold.serve.http.batches.desk import Desk
from freehold.serve.http.batches.filestore import FileRecord
from freehold.serve.http.core.call import endpoint_of
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_batches import Batches, line
from tests.http.test_streams import eventually

MODEL = "fake:1b"
CHAT = [{"role": "user", "content": "hi"}]
PAIR = {"text_1": "a", "text_2": "b"}
DOCUMENTS = {"query": "a", "documents": ["b"]}
# Every route on whose way a prompt reaches a model, a body for it, and the protocol that it belongs to.
ASKED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": CHAT}, "openai"),
    ("/v1/completions", {"prompt": "hi"}, "openai"),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "freehold"),
    ("/v1/responses", {"input": "hi"}, "openai"),
    ("/v1/embeddings", {"input": "hi"}, "openai"),
    ("/v1/rerank", DOCUMENTS, "openai"),
    ("/v2/rerank", DOCUMENTS, "freehold"),
    ("/rerank", DOCUMENTS, "freehold"),
    ("/v1/score", PAIR, "openai"),
    ("/score", PAIR, "freehold"),
    ("/tokenize", {"prompt": "hi"}, "freehold"),
    ("/detokenize", {"tokens": [1]}, "freehold"),
    ("/v1/messages", {"messages": CHAT, "max_tokens": 5}, "anthropic"),
    ("/v1/messages/count_tokens", {"messages": CHAT}, "anthropic"),
    ("/api/chat", {"messages": CHAT}, "ollama"),
    ("/api/generate", {"prompt": "hi"}, "ollama"),
    ("/api/embed", {"input": "hi"}, "ollama"),
    ("/api/embeddings", {"prompt": "hi"}, "ollama"),
]
# Routes that take a body and ask no model: of the store, of what is kept, and the owner's.
WITHOUT_A_PROMPT = {
    # a recording, which your own models alone hear
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
    # collections, whose texts the server's own embedder reads
    *("/v1/vector_stores", "/v1/vector_stores/{id}", "/v1/vector_stores/{id}/search"),
    *("/v1/vector_stores/{id}/files", "/v1/vector_stores/{id}/files/{file_id}"),
    *("/v1/vector_stores/{id}/file_batches", "/v1/vector_stores/{id}/file_batches/{batch_id}/cancel"),
    *("/v1/files", "/v1/batches", "/v1/batches/{id}/cancel", "/v1/responses/{id}/cancel"),
    *("/api/show", "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/blobs/{digest}"),
}


def labelled(running: Running, path: str, body: dict[str, Any], labels: str = "private, eu") -> Any:
    headers = {"X-Freehold-Label": labels, "X-Request-Id": "req-1"}
    answer = running.client.post(path, json={"model": MODEL, **body}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def test_every_route_that_takes_a_body_is_listed_here():
    posted = {endpoint_of(r).path for r in routes() if r.methods and "POST" in r.methods}
    admin = {path for path in posted if path.startswith("/admin")}
    console = {path for path in posted if path.startswith("/console/")}  # whose runs have a test of their own
    assert posted - admin - console == {path for path, _, _ in ASKED} | WITHOUT_A_PROMPT


@pytest.mark.parametrize(("path", "body", "door"), ASKED, ids=[path for path, _, _ in ASKED])
def test_labels_reach_the_model_by_every_route(serving, path, body, door):
    running = serving()
    running.models.origins.clear()
    labelled(running, path, body)
    assert running.models.origins
    for origin in running.models.origins:
        assert (origin.labels, origin.door, origin.request_id) == (("private", "eu"), door, "req-1")


def test_labels_of_several_headers_add_up(serving):
    running = serving()
    headers = [("X-Freehold-Label", "private"), ("x-freehold-label", "eu,private"), ("X-FREEHOLD-LABEL", "")]
    body = {"model": MODEL, "messages": CHAT}
    assert running.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    assert running.models.origins[-1].labels == ("private", "eu")


def test_a_request_without_the_header_has_no_label(serving):
    running = serving()
    running.client.post("/v1/chat/completions", json={"model": MODEL, "messages": CHAT})
    assert running.models.origins[-1].labels == ()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/v1/chat/completions", "chatcmpl-"),
        ("/v1/completions", "cmpl-"),
        ("/v1/responses", "resp_"),
        ("/v1/messages", "msg_"),
    ],
)
def test_an_answer_has_the_id_by_which_its_origin_names_it(serving, path, prefix, stream):
    running = serving()
    body = next(b for p, b, _ in ASKED if p == path)
    answer = labelled(running, path, {**body, "stream": stream})
    expected = prefix + running.models.origins[-1].answer_id
    assert expected in answer.text if stream else answer.json()["id"] == expected


def test_two_answers_have_two_ids(serving):
    running = serving()
    ids = {labelled(running, "/v1/completions", {"prompt": "hi"}).json()["id"] for _ in range(2)}
    assert len(ids) == 2


# --- batches ------------------------------------------------------------------------------------------


def begun(running: Running, upload: str = "", creation: str = "", url: str = "/v1/chat/completions") -> str:
    """Upload a file, create a batch of it, each with a label header; return the batch's id."""
    api = Batches(running.url).api
    data = json.dumps(line("a", url)).encode() + b"\n"
    header = {"X-Freehold-Label": upload} if upload else {}
    file = api.files.create(file=("lines.jsonl", data), purpose="batch", extra_headers=header)
    header = {"X-Freehold-Label": creation} if creation else {}
    made = api.batches.create(
        input_file_id=file.id, endpoint=url, completion_window="24h", extra_headers=header
    )  # type: ignore[call-overload]
    return made.id


def over(running: Running, id: str) -> bool:
    return running.client.get(f"/v1/batches/{id}").json()["status"] == "completed"


@pytest.mark.parametrize(
    "url", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
)
def test_lines_of_a_batch_have_its_labels_and_those_of_its_file(serving, url):
    running = serving()
    running.models.origins.clear()
    id = begun(running, "eu", "private", url)
    eventually(lambda: over(running, id))
    assert [(o.door, o.labels) for o in running.models.origins] == [("batch", ("private", "eu"))]


def test_a_batch_keeps_its_labels_over_a_restart(serving, tmp_path):
    first = serving(Script(delay=30.0), home=tmp_path / "kept")
    id = begun(first, "eu", "private")
    eventually(lambda: first.models.origins)
    first.end()
    second = serving(home=tmp_path / "kept")
    eventually(lambda: over(second, id))
    assert [o.labels for o in second.models.origins if o.door == "batch"] == [("private", "eu")]


def test_results_of_a_labelled_batch_have_its_labels_as_a_file(serving, tmp_path):
    running = serving(home=tmp_path / "kept")
    id = begun(running, creation="private")
    eventually(lambda: over(running, id))
    out = running.client.get(f"/v1/batches/{id}").json()["output_file_id"]
    desk = running.doors.server.part(Desk)
    assert desk is not None
    assert desk.files.get("", out).labels == ("private",)


def test_a_record_of_an_earlier_version_has_no_labels():
    old = {"id": "file-1", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
    assert FileRecord(**old).labels == ()
    assert "labels" not in FileRecord(**old).shown()
