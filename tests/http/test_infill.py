"""POST /infill as llama.cpp's server has it: fields, fields of the answer, events, and where an answer ends early."""

from __future__ import annotations

import json

import pytest

from freehold.base.types import Chunk
from freehold.serve.http.openai.completions import AnswerEnd
from tests.http.fakes import Script

URL = "/infill"
# What llama.vim and llama.vscode send.
VIM = {
    "input_prefix": "def f(n):\n",
    "input_suffix": "\n",
    "input_extra": [{"text": "def g(n): ...", "time": 1, "filename": "g.py"}],
    "prompt": "    return ",
    "n_predict": 16,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 500,
}


def ask(server, **fields):
    answer = server.client.post(URL, json={"model": "fake:1b", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_editor_s_request_becomes_a_gap_beside_other_files(serving):
    server = serving()
    body = ask(server, **VIM)
    job = server.models.served["fake:1b"].jobs[-1]
    assert (job.prompt, job.suffix, job.max_tokens) == ("def f(n):\n    return ", "\n", 16)
    assert job.beside == (("g.py", "def g(n): ..."),)
    assert job.sampling == {"temperature": 0.0, "top_k": 40, "top_p": 0.99}
    assert body["content"] == "Hello there, world." and body["stop"] is True
    assert not any("is unknown" in each or "ignored" in each for each in body["freehold"]["warnings"])


def test_an_answer_has_the_counts_and_times_that_editors_show(serving):
    body = ask(serving(Script(cached=1)), input_prefix="a b c", input_suffix="d")
    assert body["tokens_predicted"] == 3 and body["tokens_cached"] == 1 and body["stop_type"] == "eos"
    assert body["timings"].keys() >= {
        "prompt_n",
        "prompt_ms",
        "prompt_per_second",
        "predicted_n",
        "predicted_ms",
    }


def test_response_fields_are_flat(serving):
    names = ["content", "timings/predicted_n", "nothing/here"]
    assert ask(serving(), input_prefix="a", response_fields=names) == {
        "content": "Hello there, world.",
        "timings/predicted_n": 3,
    }


def test_events_join_to_the_answer_and_the_last_one_has_the_rest(serving):
    server = serving()
    whole = ask(server, input_prefix="a")
    answer = server.client.post(URL, json={"model": "fake:1b", "input_prefix": "a", "stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["tokens_predicted"] == 3 and "timings" in events[-1]


def test_no_tokens_computes_the_prompt_alone(serving):
    server = serving()
    assert ask(server, input_extra=[{"text": "x"}], n_predict=0)["content"] == ""
    assert server.models.served["fake:1b"].jobs[-1].max_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_line_that_is_indented_less(serving, stream):
    text = "x + 1\n\n    y = 2\n  \t z = 3\nprint(f(1))\nmore"
    answer = serving(Script(text=text)).client.post(
        URL, json={"model": "fake:1b", "input_prefix": "a", "n_indent": 4, "stream": stream}
    )
    lines = answer.text.splitlines() if stream else [f"data: {answer.text}"]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == "x + 1\n\n    y = 2\n  \t z = 3"
    assert events[-1]["stop_type"] == "limit" and events[-1]["has_new_line"]


def test_a_time_ends_an_answer_once_it_has_a_line():
    end = AnswerEnd(0, 1e-9)
    assert end.cut(Chunk(text="one")) == (Chunk(text="one"), False)
    assert end.cut(Chunk(text=" two"))[1] is False
    assert end.cut(Chunk(text="\n"))[1] is True


def test_without_a_name_the_only_model_in_memory_answers(serving):
    server = serving()
    ask(server, input_prefix="a")
    assert server.client.post(URL, json={"input_prefix": "a"}).json()["model"] == "fake:1b"


@pytest.mark.parametrize(
    "fields", [{"input_extra": [{"filename": "x"}]}, {"n_predict": -2}, {"input_prefix": 1}, {"mirostat": 2}]
)
def test_what_cannot_be_is_refused(serving, fields):
    assert serving().client.post(URL, json={"model": "fake:1b", **fields}).status_code == 400
