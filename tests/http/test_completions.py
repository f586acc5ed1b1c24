"""POST /v1/completions: prompts of every kind, echo, and the old logprobs that lm-eval reads."""

from __future__ import annotations

from itertools import chain

import pytest

from freehold.base.errors import Overloaded
from freehold.serve.http.core import computing
from freehold.serve.http.core.computing import ABREAST
from tests.http.fakes import FakeServed, Script
from tests.http.test_chat import events

URL = "/v1/completions"


def ask(server, **fields):
    answer = server.client.post(URL, json={"model": "fake:1b", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_text_is_continued_and_sixteen_tokens_are_the_default(serving):
    server = serving()
    body = ask(server, prompt="a b")
    assert body["object"] == "text_completion" and body["choices"][0]["text"] == "Hello there, world."
    assert server.models.served["fake:1b"].jobs[-1].max_tokens == 16


def test_every_kind_of_prompt_becomes_a_job(serving):
    server = serving()
    for prompt in ("a b", ["a b", "c"], [1, 2], [[1, 2], [3]]):
        ask(server, prompt=prompt)
    prompts = [job.prompt for job in server.models.served["fake:1b"].jobs]
    assert sorted(map(str, prompts)) == sorted(map(str, ["a b", "a b", "c", (1, 2), (1, 2), (3,)]))


def test_many_prompts_of_one_request_do_not_enter_all_at_once(serving):
    server = serving(Script(delay=0.001))
    most = 0

    async def start(served, job, keep_alive=None):
        nonlocal most
        stream = await begin(served, job, keep_alive)
        most = max(most, served.loaded.in_flight)
        return stream

    begin = FakeServed.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeServed, "start", start)
        asked = {"model": "fake:1b", "prompt": [f"item {i}" for i in range(300)], "max_tokens": 2}
        answer = server.client.post("/v1/completions", json=asked).json()
    assert len(answer["choices"]) == 300 and most == ABREAST


def test_prompts_of_one_request_wait_for_each_other_where_the_queue_is_short(serving, monkeypatch):
    async def start(served, job, keep_alive=None):
        if served.loaded.in_flight >= 2:
            raise Overloaded("the queue is full", wait_s=0.01)
        return await begin(served, job, keep_alive)

    server, begin = serving(Script(delay=0.001)), FakeServed.start
    monkeypatch.setattr(FakeServed, "start", start)
    monkeypatch.setattr(computing, "FULL_WAIT_S", 0.0)
    assert len(ask(server, prompt=["a", "b", "c", "d", "e"])["choices"]) == 5
    server.models.served["fake:1b"].loaded.in_flight = 2  # others'
    asked = {"model": "fake:1b", "prompt": ["a", "b"]}
    assert server.client.post(URL, json=asked).status_code == 429


def test_choices_are_numbered_by_prompt_then_by_answer(serving):
    body = ask(serving(), prompt=["a", "b"], n=2, echo=True)
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert [c["text"][0] for c in body["choices"]] == ["a", "a", "b", "b"]
    assert body["usage"]["prompt_tokens"] == 2 and body["usage"]["completion_tokens"] == 12


def test_streamed_prompts_join_to_the_whole_answers(serving):
    server = serving()
    asked = {"prompt": ["a b", "c"], "echo": True, "logprobs": 1}
    whole = ask(server, **asked)["choices"]
    got = events(server.client.post(URL, json={"model": "fake:1b", **asked, "stream": True}).text)
    for choice in whole:
        mine = [e["choices"][0] for e in got if e["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            pieces = (c["logprobs"][column] for c in mine if c["logprobs"])
            assert [*chain(*pieces)] == choice["logprobs"][column]


def test_echoed_logprobs_are_what_lm_eval_reads(serving):
    """Its loop: sum token_logprobs[ctxlen:-1], and greedy if each equals the best of its alternatives."""
    body = ask(serving(), prompt="the cat sat", echo=True, logprobs=1, max_tokens=1, temperature=0)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["the", " cat", " sat", "Hello"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 3, 7, 11]
    for token, top in zip(logprobs["token_logprobs"][1:-1], logprobs["top_logprobs"][1:-1], strict=True):
        assert token == max(top.values())


def test_the_prompt_alone_is_scored_with_max_tokens_0(serving):
    body = ask(serving(), prompt=["a b", "c d e"], echo=True, logprobs=0, max_tokens=0)
    assert [c["text"] for c in body["choices"]] == ["a b", "c d e"]
    assert [len(c["logprobs"]["tokens"]) for c in body["choices"]] == [2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_alone_is_echoed_without_logprobs_too(serving, stream):
    asked = {"model": "fake:1b", "prompt": ["a b", "c"], "echo": True, "max_tokens": 0, "stream": stream}
    answer = serving().client.post(URL, json=asked)
    got = [e["choices"][0] for e in events(answer.text)] if stream else answer.json()["choices"]
    assert "".join(c["text"] for c in got if c["index"] == 0) == "a b"
    assert "".join(c["text"] for c in got if c["index"] == 1) == "c"
    assert {c["finish_reason"] for c in got} - {None} == {"length"}
    assert all(c["logprobs"] is None for c in got)


def test_echo_of_token_ids_is_their_text(serving):
    server = serving()
    ids = server.client.post("/tokenize", json={"model": "fake:1b", "prompt": "x y z"}).json()["tokens"]
    body = ask(server, prompt=ids, echo=True, logprobs=1)
    assert body["choices"][0]["text"].startswith("x y z")
    assert body["choices"][0]["logprobs"]["tokens"][:3] == ["x", " y", " z"]


def test_logprobs_with_ids_carry_the_chat_shape_too(serving):
    body = ask(serving(), prompt="a b", echo=True, logprobs=2, return_token_ids=True)
    logprobs = body["choices"][0]["logprobs"]
    assert len(logprobs["content"]) == len(logprobs["tokens"])
    assert logprobs["content"][0]["logprob"] is None
    assert [t["id"] for t in logprobs["content"]][-3:] == body["choices"][0]["token_ids"]


def test_a_stream_with_ids_begins_with_those_of_each_prompt(serving):
    server = serving()
    asked = {"model": "fake:1b", "prompt": ["a b", "c"], "return_token_ids": True, "stream": True}
    got = [e["choices"][0] for e in events(server.client.post(URL, json=asked).text)]
    for choice, prompt in enumerate(asked["prompt"]):
        ids = server.client.post("/tokenize", json={"model": "fake:1b", "prompt": prompt}).json()["tokens"]
        assert next(c for c in got if c["index"] == choice)["prompt_token_ids"] == ids


def test_suffix_and_stop_reach_the_job(serving):
    server = serving()
    ask(server, prompt="def f(", suffix="return x", stop=["\n\n"])
    job = server.models.served["fake:1b"].jobs[-1]
    assert (job.prompt, job.suffix, job.stop) == ("def f(", "return x", ("\n\n",))


def test_empty_suffix_is_none(serving):
    assert ask(serving(), prompt="a", suffix="", echo=True)["choices"][0]["text"].startswith("a")


def test_a_reasoning_models_thinking_is_part_of_the_text(serving):
    assert ask(serving(Script(text=" b", thinking="a")), prompt="x")["choices"][0]["text"] == "a b"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], 2]}, "prompt"),
        ({"prompt": [[-1]]}, "prompt[0][0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"prompt": ["x"] * 100, "n": 11}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "suffix": "y", "echo": True}, "suffix"),
        ({"prompt": [1], "suffix": "y"}, "suffix"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "add_special_tokens": False}, "add_special_tokens"),
    ],
)
def test_a_wrong_request_is_refused_by_name(serving, fields, param):
    answer = serving().client.post(URL, json={"model": "fake:1b", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param, answer.text
