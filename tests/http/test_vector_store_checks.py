"""Forty checks of vector stores and file search, each by OpenAI's own client, unmodified, on one server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from freehold.serve.documents.types import DEFAULT_EMBEDDER
from tests.http.conftest import Running, start
from tests.http.fakes import FakeModels, Script

MODEL = "fake:1b"
ANSWER = "The printer takes toner TN-247 [1]."
TONER, BACKUPS = b"The printer takes toner TN-247.", b"Backups run at two in the morning."


def with_embedder(models: FakeModels) -> FakeModels:
    models._names = (MODEL, DEFAULT_EMBEDDER)
    models.play(models.script)
    return models


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(tmp_path_factory.mktemp("checks"), Script(text=ANSWER), around=with_embedder)
    yield running
    running.end()


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def filed(client: openai.OpenAI) -> Callable[..., str]:
    """Return a function that uploads a text."""
    return lambda data, name="a.txt": client.files.create(file=(name, data), purpose="assistants").id


@pytest.fixture(scope="module")
def notes(client: openai.OpenAI) -> Any:
    """A store with two files that have attributes."""
    store = client.vector_stores.create(name="notes")
    for name, data, attributes in (
        ("toner.txt", TONER, {"year": 2025, "kind": "note", "draft": False}),
        ("backups.md", BACKUPS, {"year": 2020, "kind": "rule", "draft": True}),
    ):
        client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=(name, data), attributes=attributes
        )
    return client.vector_stores.retrieve(store.id)


def named(page: Any) -> list[str]:
    return [hit.filename for hit in page.data]


# --- stores


def test_create_without_anything(client: openai.OpenAI):
    store = client.vector_stores.create()
    assert (store.object, store.status, store.file_counts.total) == ("vector_store", "completed", 0)
    assert store.id.startswith("vs_") and store.usage_bytes == 0 and store.metadata == {}


def test_create_with_files_indexes_them(client: openai.OpenAI, filed: Callable[..., str]):
    id = filed(TONER)
    store = client.vector_stores.create(file_ids=[id])
    assert client.vector_stores.files.poll(id, vector_store_id=store.id).status == "completed"
    assert client.vector_stores.retrieve(store.id).file_counts.completed == 1


def test_create_with_an_unknown_file_makes_no_store(client: openai.OpenAI):
    before = [store.id for store in client.vector_stores.list()]
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.create(file_ids=["file-none"])
    assert [store.id for store in client.vector_stores.list()] == before


def test_description_and_metadata_come_back(client: openai.OpenAI):
    store = client.vector_stores.create(name="N", description="What it is.", metadata={"team": "a"})
    again = client.vector_stores.retrieve(store.id)
    assert (again.name, again.metadata, again.model_dump()["description"]) == (
        "N",
        {"team": "a"},
        "What it is.",
    )


def test_metadata_has_sixteen_keys_at_most(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="metadata"):
        client.vector_stores.create(metadata={str(n): "x" for n in range(17)})


def test_update_changes_what_is_named_alone(client: openai.OpenAI):
    store = client.vector_stores.create(name="Old", metadata={"a": "b"})
    assert client.vector_stores.update(store.id, name="New").metadata == {"a": "b"}
    changed = client.vector_stores.update(store.id, metadata={"c": "d"})
    assert (changed.name, changed.metadata) == ("New", {"c": "d"})


def test_expiry_is_set_and_removed(client: openai.OpenAI):
    store = client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 2})
    assert store.expires_at == store.last_active_at + 2 * 86_400
    assert client.vector_stores.update(store.id, expires_after=None).expires_at is None


def test_expiry_has_bounds(client: openai.OpenAI):
    for days in (0, 366):
        with pytest.raises(openai.BadRequestError, match="days"):
            client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": days})


def test_an_expired_store_says_so_and_is_not_searched(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch):
    store = client.vector_stores.create(expires_after={"anchor": "last_active_at", "days": 1})
    clock = SimpleNamespace(time=lambda: time.time() + 2 * 86_400)
    monkeypatch.setattr("freehold.serve.http.openai.vector_stores.time", clock)
    assert client.vector_stores.retrieve(store.id).status == "expired"
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.vector_stores.search(store.id, query="x")


def test_delete_is_final(client: openai.OpenAI):
    store = client.vector_stores.create()
    assert client.vector_stores.delete(store.id).deleted
    for call in (client.vector_stores.retrieve, client.vector_stores.delete):
        with pytest.raises(openai.NotFoundError):
            call(store.id)


def test_stores_are_listed_in_pages_without_a_gap(client: openai.OpenAI):
    made = {client.vector_stores.create().id for _ in range(5)}
    walked = [store.id for store in client.vector_stores.list(limit=2)]
    assert made <= set(walked) and len(walked) == len(set(walked))


def test_stores_are_listed_backwards_and_before_one(client: openai.OpenAI):
    down = client.vector_stores.list(limit=100).data
    up = client.vector_stores.list(limit=100, order="asc").data
    assert [s.id for s in up] == [s.id for s in down][::-1]
    before = client.vector_stores.list(limit=2, before=down[3].id)
    assert [s.id for s in before.data] == [down[1].id, down[2].id] and before.has_more


def test_a_page_has_bounds_and_a_known_cursor(client: openai.OpenAI):
    for fields in (
        {"limit": 0},
        {"limit": 101},
        {"after": "vs_none"},
        {"before": "vs_none"},
        {"order": "up"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.list(**fields)  # type: ignore[arg-type]


# --- files of a store


def test_a_file_is_attached_and_polled(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create()
    file = client.vector_stores.files.create_and_poll(filed(TONER), vector_store_id=store.id)
    assert (file.object, file.status, file.last_error) == ("vector_store.file", "completed", None)
    assert file.vector_store_id == store.id and file.usage_bytes > 0


def test_an_unknown_file_is_not_attached(client: openai.OpenAI, notes: Any):
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.create(notes.id, file_id="file-none")


def test_attributes_are_texts_numbers_and_truths(client: openai.OpenAI, notes: Any):
    files = {f.attributes["year"]: f.attributes for f in client.vector_stores.files.list(notes.id)}
    assert files[2025] == {"year": 2025.0, "kind": "note", "draft": False}
    assert isinstance(files[2020]["draft"], bool)


def test_attributes_are_replaced(client: openai.OpenAI, filed: Callable[..., str]):
    store, id = client.vector_stores.create(), filed(TONER)
    client.vector_stores.files.create_and_poll(id, vector_store_id=store.id, attributes={"a": 1})
    changed = client.vector_stores.files.update(id, vector_store_id=store.id, attributes={"b": "x"})
    assert changed.attributes == {"b": "x"}
    assert client.vector_stores.files.update(id, vector_store_id=store.id, attributes=None).attributes == {}


def test_attributes_have_bounds(client: openai.OpenAI, notes: Any, filed: Callable[..., str]):
    for attributes in ({"a": "x" * 513}, {"a" * 65: 1}, {str(n): 1 for n in range(17)}):
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.files.create(notes.id, file_id=filed(TONER), attributes=attributes)


def test_files_are_filtered_by_status(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create()
    good = client.vector_stores.files.create_and_poll(filed(TONER), vector_store_id=store.id)
    bad = client.vector_stores.files.create_and_poll(filed(b"\0\1", "x.bin"), vector_store_id=store.id)
    assert bad.status == "failed" and bad.last_error and bad.last_error.code == "unsupported_file"
    for status, id in (("completed", good.id), ("failed", bad.id)):
        assert [f.id for f in client.vector_stores.files.list(store.id, filter=status)] == [id]
    assert client.vector_stores.retrieve(store.id).file_counts.failed == 1
    with pytest.raises(openai.BadRequestError, match="filter"):
        client.vector_stores.files.list(store.id, filter="lost")  # type: ignore[arg-type]


def test_files_are_listed_in_pages_and_both_orders(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create(file_ids=[filed(b"text %d" % n) for n in range(5)])
    down = [f.id for f in client.vector_stores.files.list(store.id, limit=2)]
    up = [f.id for f in client.vector_stores.files.list(store.id, limit=2, order="asc")]
    assert len(set(down)) == 5 and up == down[::-1]
    before = client.vector_stores.files.list(store.id, before=down[2])
    assert [f.id for f in before.data] == down[:2] and not before.has_more


def test_the_text_of_a_file_is_read_back(client: openai.OpenAI, notes: Any):
    (file,) = [f for f in client.vector_stores.files.list(notes.id) if f.attributes["year"] == 2025]
    content = client.vector_stores.files.content(file.id, vector_store_id=notes.id)
    assert [(c.type, c.text) for c in content] == [("text", TONER.decode())]


def test_a_file_leaves_the_store_and_stays_a_file(client: openai.OpenAI, filed: Callable[..., str]):
    store, id = client.vector_stores.create(), filed(TONER)
    client.vector_stores.files.create_and_poll(id, vector_store_id=store.id)
    assert client.vector_stores.files.delete(id, vector_store_id=store.id).deleted
    assert client.vector_stores.search(store.id, query="toner").data == []
    assert client.files.retrieve(id).id == id
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.retrieve(id, vector_store_id=store.id)


def test_a_static_strategy_cuts_as_it_says(client: openai.OpenAI, filed: Callable[..., str]):
    id = filed("\n\n".join(f"Paragraph {n} has a few words of its own." * 6 for n in range(20)).encode())
    counts = []
    for size in (100, 800):
        store = client.vector_stores.create()
        static: Any = {
            "type": "static",
            "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": size // 2},
        }
        file = client.vector_stores.files.create_and_poll(
            id, vector_store_id=store.id, chunking_strategy=static
        )
        assert file.chunking_strategy and file.chunking_strategy.static.max_chunk_size_tokens == size
        counts.append(len(client.vector_stores.files.content(id, vector_store_id=store.id).data))
    assert counts[0] > counts[1] >= 1


def test_a_strategy_has_bounds(client: openai.OpenAI, notes: Any, filed: Callable[..., str]):
    id = filed(TONER)
    for size, overlap in ((99, 0), (4097, 0), (200, 101)):
        static: Any = {
            "type": "static",
            "static": {"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap},
        }
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.files.create(notes.id, file_id=id, chunking_strategy=static)


def test_the_automatic_strategy_is_shown_with_its_size(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create()
    file = client.vector_stores.files.create_and_poll(
        filed(TONER), vector_store_id=store.id, chunking_strategy={"type": "auto"}
    )
    assert file.chunking_strategy and file.chunking_strategy.static.max_chunk_size_tokens > 0


# --- batches


def test_a_batch_is_uploaded_and_polled(client: openai.OpenAI):
    store = client.vector_stores.create()
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("a.txt", TONER), ("b.txt", BACKUPS)]
    )
    assert (batch.object, batch.status, batch.file_counts.completed) == (
        "vector_store.files_batch",
        "completed",
        2,
    )
    assert (
        client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id).file_counts.total == 2
    )


def test_files_of_a_batch_have_their_own_attributes(client: openai.OpenAI, filed: Callable[..., str]):
    store, one, two = client.vector_stores.create(), filed(TONER), filed(BACKUPS)
    batch = client.vector_stores.file_batches.create(
        store.id, files=[{"file_id": one, "attributes": {"n": 1}}, {"file_id": two}]
    )
    client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
    files = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id)
    assert {f.id: f.attributes for f in files} == {one: {"n": 1.0}, two: {}}


def test_attributes_of_a_batch_are_those_of_all_its_files(client: openai.OpenAI, filed: Callable[..., str]):
    store, ids = client.vector_stores.create(), [filed(TONER), filed(BACKUPS)]
    client.vector_stores.file_batches.create_and_poll(store.id, file_ids=ids, attributes={"set": "x"})
    assert all(f.attributes == {"set": "x"} for f in client.vector_stores.files.list(store.id))


def test_a_batch_names_files_in_one_way(client: openai.OpenAI, notes: Any, filed: Callable[..., str]):
    id = filed(TONER)
    with pytest.raises(openai.BadRequestError, match="exclude"):
        client.vector_stores.file_batches.create(notes.id, file_ids=[id], files=[{"file_id": id}])
    with pytest.raises(openai.BadRequestError, match="file_ids"):
        client.vector_stores.file_batches.create(notes.id, file_ids=[])


def test_a_batch_with_an_unknown_file_begins_nothing(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create()
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.file_batches.create(store.id, file_ids=[filed(TONER), "file-none"])
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0


def test_a_finished_batch_stays_as_it_is_when_cancelled(client: openai.OpenAI, filed: Callable[..., str]):
    store = client.vector_stores.create()
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[filed(TONER)])
    again = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert again.file_counts.completed == 1 and again.status == "completed"


# --- search


def test_search_ranks_and_scores(client: openai.OpenAI, notes: Any):
    page = client.vector_stores.search(notes.id, query="which toner does the printer take?")
    assert named(page)[0] == "toner.txt" and page.data[0].content[0].text == TONER.decode()
    scores = [hit.score for hit in page.data]
    assert scores == sorted(scores, reverse=True) and all(0 <= s <= 1 for s in scores)
    assert page.data[0].attributes == {"year": 2025.0, "kind": "note", "draft": False}


def test_search_takes_several_queries(client: openai.OpenAI, notes: Any):
    page = client.vector_stores.search(notes.id, query=["toner", "backups"], rewrite_query=True)
    assert set(named(page)) == {"toner.txt", "backups.md"}
    assert page.model_dump()["search_query"] == ["toner", "backups"]


def test_search_has_bounds(client: openai.OpenAI, notes: Any):
    assert len(client.vector_stores.search(notes.id, query="the", max_num_results=1).data) == 1
    for fields in ({"max_num_results": 0}, {"max_num_results": 51}, {"query": ""}):
        with pytest.raises(openai.BadRequestError):
            client.vector_stores.search(notes.id, **{"query": "x", **fields})  # type: ignore[arg-type]


def test_a_threshold_leaves_poor_results_out(client: openai.OpenAI, notes: Any):
    options: Any = {"ranker": "auto", "score_threshold": 0.99}
    page = client.vector_stores.search(notes.id, query="toner TN-247", ranking_options=options)
    assert all(hit.score >= 0.99 for hit in page.data) and "backups.md" not in named(page)


@pytest.mark.parametrize(
    "kind, key, value, wanted",
    [
        ("eq", "kind", "note", {"toner.txt"}),
        ("ne", "kind", "note", {"backups.md"}),
        ("gte", "year", 2025, {"toner.txt"}),
        ("lt", "year", 2025, {"backups.md"}),
        ("in", "kind", ["rule", "law"], {"backups.md"}),
        ("nin", "kind", ["rule"], {"toner.txt"}),
        ("eq", "draft", True, {"backups.md"}),
    ],
)
def test_search_compares_attributes(
    client: openai.OpenAI, notes: Any, kind: str, key: str, value: Any, wanted: set[str]
):
    filters: Any = {"type": kind, "key": key, "value": value}
    assert (
        set(named(client.vector_stores.search(notes.id, query="the toner backups", filters=filters)))
        == wanted
    )


def test_filters_are_joined_and_refused(client: openai.OpenAI, notes: Any):
    year: Any = {"type": "gt", "key": "year", "value": 2000}
    kind: Any = {"type": "eq", "key": "kind", "value": "rule"}
    both = client.vector_stores.search(
        notes.id, query="the toner backups", filters={"type": "and", "filters": [year, kind]}
    )
    assert named(both) == ["backups.md"]
    wrong: Any = {"type": "like", "key": "kind", "value": "r"}
    with pytest.raises(openai.BadRequestError, match="filters"):
        client.vector_stores.search(notes.id, query="x", filters=wrong)


# --- file search in responses


def searched(client: openai.OpenAI, store: str, **fields: Any) -> Any:
    tool = {"type": "file_search", "vector_store_ids": [store], **fields.pop("tool", {})}
    return client.responses.create(model=MODEL, input="Which toner?", tools=[tool], **fields)


def test_an_answer_is_annotated_and_has_no_results_unless_included(client: openai.OpenAI, notes: Any):
    response = searched(client, notes.id)
    search, message = response.output
    assert (search.type, search.status, search.queries, search.results) == (
        "file_search_call",
        "completed",
        ["Which toner?"],
        None,
    )
    (note,) = message.content[0].annotations
    assert (note.type, note.filename) == ("file_citation", "toner.txt") and note.file_id.startswith("file-")


def test_results_are_included(client: openai.OpenAI, notes: Any):
    response = searched(client, notes.id, include=["file_search_call.results"])
    first = response.output[0].results[0]
    assert (first.filename, first.text) == ("toner.txt", TONER.decode())
    assert first.attributes == {"year": 2025.0, "kind": "note", "draft": False} and 0 < first.score <= 1


def test_results_of_a_response_are_limited_and_filtered(client: openai.OpenAI, notes: Any):
    include: Any = ["file_search_call.results"]
    one = searched(client, notes.id, tool={"max_num_results": 1}, include=include)
    assert len(one.output[0].results) == 1
    filters = {"type": "eq", "key": "year", "value": 2020}
    old = searched(client, notes.id, tool={"filters": filters}, include=include)
    assert [r.filename for r in old.output[0].results] == ["backups.md"]
    with pytest.raises(openai.BadRequestError):
        searched(client, notes.id, tool={"max_num_results": 51})


def test_a_stream_has_the_events_of_a_search(client: openai.OpenAI, notes: Any):
    tools: Any = [{"type": "file_search", "vector_store_ids": [notes.id]}]
    with client.responses.stream(model=MODEL, input="Which toner?", tools=tools) as stream:
        kinds = [event.type for event in stream]
        last = stream.get_final_response()
    at = kinds.index("response.file_search_call.in_progress")
    assert kinds[at - 1 : at + 4] == [
        "response.output_item.added",
        *(f"response.file_search_call.{kind}" for kind in ("in_progress", "searching", "completed")),
        "response.output_item.done",
    ]
    assert "response.output_text.annotation.added" in kinds and last.output[0].type == "file_search_call"


def test_a_store_that_is_not_there_is_named(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="vs_none"):
        searched(client, "vs_none")
