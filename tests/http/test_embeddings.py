"""POST /v1/embeddings, rerank and score: every kind of input, both encodings, and what is refused."""

from __future__ import annotations

import base64

import numpy as np
import openai
import pytest

from freehold.base.errors import ContextOverflow
from freehold.base.serving import EmbedJob
from tests.http.fakes import failing

URL = "/v1/embeddings"


def ask(server, url: str = URL, **fields):
    answer = server.client.post(url, json={"model": "fake:1b", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server, url: str = URL, **fields):
    answer = server.client.post(url, json={"model": "fake:1b", **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_a_text_becomes_a_vector_with_its_count(serving):
    body = ask(serving(), input="aab b")
    [data] = body["data"]
    assert data["object"] == "embedding" and data["index"] == 0
    assert data["embedding"] == pytest.approx([0.7071068, 0.7071068, 0])
    assert body["usage"] == {"prompt_tokens": 2, "total_tokens": 2} and body["model"] == "fake:1b"


def test_every_kind_of_input_is_read(serving):
    server = serving()
    assert len(ask(server, input=["a", "b"])["data"]) == 2
    ids = server.client.post("/tokenize", json={"model": "fake:1b", "prompt": "a b"}).json()["tokens"]
    assert len(ask(server, input=ids)["data"]) == 1
    assert len(ask(server, input=[ids, ids])["data"]) == 2
    assert len(ask(server, input=["a", ids])["data"]) == 2


def test_base64_holds_the_same_float32(serving):
    server = serving()
    plain = ask(server, input="abc a")["data"][0]["embedding"]
    coded = ask(server, input="abc a", encoding_format="base64")["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == plain


def test_options_reach_the_engine(serving):
    server = serving()
    body = ask(server, input=["a long b"], dimensions=2, pooling="mean", truncate=True, keep_alive="5m")
    served = server.models.served["fake:1b"]
    assert served.embeddings[-1] == EmbedJob(("a long b",), "mean", True, 2, client="address 127.0.0.1")
    assert served.keep_alives[-1] == 300
    assert len(body["data"][0]["embedding"]) == body["freehold"]["dimensions"] == 2
    assert body["freehold"]["warnings"] == ["1 texts were cut to the context, as asked: 0"]


@pytest.mark.parametrize("given, priority", [(None, "interactive"), ("batch", "batch"), (1, "batch")])
def test_priority_is_read_as_in_chats(serving, given, priority):
    server = serving()
    ask(server, input="a", priority=given)
    ask(server, "/rerank", query="a", documents=["b"], priority=given)
    assert [job.priority for job in server.models.served["fake:1b"].embeddings] == [priority] * 2


def test_unknown_fields_are_named(serving):
    body = ask(serving(), input="a", colour="red", input_type="query")
    assert len(body["freehold"]["warnings"]) == 2


@pytest.mark.parametrize(
    "fields, part",
    [
        ({}, "input is missing"),
        ({"input": []}, "input has 0 texts; expected 1 to 2,048"),
        ({"input": ["a"] * 2049}, "input has 2,049 texts"),
        ({"input": ["a", 3]}, "input mixes token ids with texts"),
        ({"input": [3, "a"]}, "input mixes token ids with texts"),
        ({"input": [[]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions is 0"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "max"}, "pooling"),
    ],
)
def test_what_is_no_request_is_refused_by_name(serving, fields, part):
    assert part in refused(serving(), **fields)["message"]


def test_a_text_that_is_too_long_is_a_400_with_its_numbers(serving):
    error = ContextOverflow("text 3 has 700 tokens; fake:1b reads 512", "split it")
    told = refused(serving(failing("embed", error)), input="a")
    assert told["code"] == "context_length_exceeded" and "text 3 has 700 tokens" in told["message"]


# --- rerank and score --------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_in_order_of_their_nearness(serving, url):
    body = ask(serving(), url, query="a", documents=["b", "ab", {"text": "aa"}], top_n=2)
    assert [r["index"] for r in body["results"]] == [2, 1]
    assert body["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-6)
    shown = [r.get("document") for r in body["results"]]
    assert shown == ([None, None] if url == "/v2/rerank" else [{"text": "aa"}, {"text": "ab"}])
    assert body["usage"]["total_tokens"] == 4 and body["meta"]["warnings"] == []


def test_documents_are_shown_or_not_as_asked(serving):
    body = ask(serving(), "/v1/rerank", query="a", documents=["b"], return_documents=False)
    assert "document" not in body["results"][0]


def test_equals_keep_their_order(serving):
    body = ask(serving(), "/rerank", query="a", documents=["b", "c", "b"])
    assert [r["index"] for r in body["results"]] == [0, 1, 2]


@pytest.mark.parametrize("url", ["/v1/score", "/score"])
def test_pairs_are_scored_one_to_many_and_one_to_one(serving, url):
    server = serving()
    body = ask(server, url, text_1="a", text_2=["a", "b"])
    assert [d["score"] for d in body["data"]] == pytest.approx([1, 0], abs=1e-6)
    body = ask(server, url, text_1=["a", "b"], text_2=["b", "b"])
    assert [d["score"] for d in body["data"]] == pytest.approx([0, 1], abs=1e-6)


@pytest.mark.parametrize(
    "url, fields, part",
    [
        ("/v1/rerank", {"query": "a", "documents": []}, "documents has 0 texts"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 2048}, "documents has 2,049 texts"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, "top_n is 0"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "x"}]}, "text is missing"),
        ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1 has 2 texts and text_2 1"),
        ("/score", {"text_1": "a", "text_2": []}, "has 0 texts"),
    ],
)
def test_what_cannot_be_scored_is_refused(serving, url, fields, part):
    assert part in refused(serving(), url, **fields)["message"]


# --- the real client ---------------------------------------------------------------------------------


def test_the_openai_client_reads_embeddings(serving):
    """It asks for base64 by itself, and gives floats."""
    with openai.OpenAI(base_url=f"{serving().url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="fake:1b", input=["ab", "c"])
        assert answer.data[0].embedding == pytest.approx([0.7071068, 0.7071068, 0])
        assert [d.index for d in answer.data] == [0, 1] and answer.usage.prompt_tokens == 2
        few = client.embeddings.create(model="fake:1b", input="ab", dimensions=1, encoding_format="float")
        assert few.data[0].embedding == [1.0]
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="nobody:1b", input="a")
