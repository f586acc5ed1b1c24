"""/api/embed and /api/embeddings: vectors, what becomes of options, loading and letting go, and who may."""

from __future__ import annotations

import pytest

from freehold.base.errors import ContextOverflow
from freehold.base.serving import EmbedJob
from freehold.serve.http.core.keys import Ring
from tests.http.fakes import failing
from tests.http.ollama_rig import error_of
from tests.http.test_door import bearer, key

ROUTES = {"/api/embed": "input", "/api/embeddings": "prompt"}


def ask(server, route="/api/embed", **fields):
    answer = server.client.post(route, json={"model": "fake:1b", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_texts_become_unit_vectors_with_their_count_and_times(serving):
    server = serving()
    body = ask(server, input=["aab b", "c"])
    assert body["embeddings"][0] == pytest.approx([0.7071068, 0.7071068, 0])
    assert body["embeddings"][1] == [0, 0, 1]
    assert body["prompt_eval_count"] == 3 and body["model"] == "fake:1b"
    assert body["total_duration"] >= body["load_duration"] > 0
    assert ask(server, input="c")["embeddings"] == [[0, 0, 1]]


def test_the_older_route_answers_one_vector(serving):
    assert ask(serving(), "/api/embeddings", prompt="c")["embedding"] == [0, 0, 1]


def test_dimensions_truncate_and_keep_alive_reach_the_engine(serving):
    server = serving()
    body = ask(server, input=["a long b"], dimensions=2, truncate=True, keep_alive="5m")
    served = server.models.served["fake:1b"]
    assert served.embeddings[-1] == EmbedJob(("a long b",), None, True, 2, client="address 127.0.0.1")
    assert served.keep_alives[-1] == 300 and len(body["embeddings"][0]) == 2
    assert body["freehold"]["warnings"] == ["1 texts were cut to the context, as asked: 0"]


@pytest.mark.parametrize("route, field", ROUTES.items())
def test_what_changes_no_vector_is_named(serving, route, field):
    options = {"temperature": 1, "num_ctx": 512, "num_gpu": 1, "tempo": 2}
    warnings = ask(serving(), route, **{field: "a"}, options=options, colour="red")["freehold"]["warnings"]
    assert len(warnings) == 5
    for name in (*options, "colour"):
        assert any(name in warning for warning in warnings), name


@pytest.mark.parametrize("route, field", ROUTES.items())
def test_without_a_text_the_model_is_loaded_or_let_go(serving, route, field):
    server = serving()
    for nothing in ({}, {field: ""}, *([{field: []}] if field == "input" else [])):
        body = ask(server, route, **nothing)
        assert body.get("embeddings", body.get("embedding")) == [] and "fake:1b" in server.models.in_memory
    ask(server, route, keep_alive=0)
    assert "fake:1b" not in server.models.in_memory


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"input": ["a"] * 2049}, "input has 2,049 texts"),
        ({"input": [1, 2]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions is 0"),
        ({"input": "a", "options": {"temperature": "hot"}}, "temperature"),
    ],
)
def test_what_cannot_be_read_is_refused_in_this_protocols_shape(serving, fields, part):
    answer = serving().client.post("/api/embed", json={"model": "fake:1b", **fields})
    assert part in error_of(answer, 400)


def test_a_text_too_long_and_an_unknown_model_say_so(serving):
    long = ContextOverflow("text 1 has 9,000 tokens; fake:1b has room for 4,096", "truncate true cuts it")
    server = serving(failing("embed", long))
    answer = server.client.post("/api/embed", json={"model": "fake:1b", "input": ["a", "b"]})
    assert "9,000" in error_of(answer, 400)
    unknown = server.client.post("/api/embed", json={"model": "nothing", "input": "a"})
    assert "nothing" in error_of(unknown, 404)


# --- who may ----------------------------------------------------------------------------------------------


def test_a_keys_scope_and_budget_hold(serving):
    server = serving(keys=Ring([key("ann", models=("org/*",)), key("poor", tokens="5/day")]))
    body = {"model": "fake:1b", "input": "a a a"}
    assert server.client.post("/api/embed", json=body, headers=bearer("ann")).status_code == 404
    assert server.client.post("/api/embed", json=body, headers=bearer("poor")).status_code == 200
    assert server.client.post("/api/embed", json=body, headers=bearer("poor")).status_code == 429


@pytest.mark.parametrize("route", ["/api/chat", "/api/generate", *ROUTES])
def test_a_client_s_key_unloads_no_model_that_others_use(serving, route):
    server = serving(keys=Ring([key("ann"), key("root", kind="admin")]))
    assert server.client.post(route, json={"model": "fake:1b"}, headers=bearer("ann")).status_code == 200
    answer = server.client.post(route, json={"model": "fake:1b", "keep_alive": 0}, headers=bearer("ann"))
    assert "owner" in error_of(answer, 403) and "fake:1b" in server.models.in_memory
    load = {"model": "fake:1b"}
    assert server.client.post("/admin/unload", json=load, headers=bearer("root")).status_code == 200
    assert "fake:1b" not in server.models.in_memory
