"""POST /api/generate: a prompt as a chat of one turn, raw, with a gap to fill, or going on from ids."""

from __future__ import annotations

import pytest

from freehold.base.types import Message
from tests.http.fakes import Script
from tests.http.ollama_rig import TEXT, ask, job_of, lines, refused

ROUTE = "/api/generate"


def job(server, **fields):
    return job_of(server, ROUTE, **fields)


def test_a_prompt_is_answered_as_a_chat_of_one_turn(serving):
    server = serving(Script(thinking="hm"))
    body = ask(server, ROUTE, system="Be brief.")
    assert body["response"] == "Hello there, world." and body["thinking"] == "hm"
    assert body["done_reason"] == "stop" and body["eval_count"] == 4
    assert server.models.served["fake:1b"].jobs[-1].messages == (
        Message("system", "Be brief."),
        Message("user", "hi you"),
    )


def test_lines_join_to_the_whole_and_end_with_the_ids_of_all(serving):
    *pieces, last = lines(serving().client.post(ROUTE, json=TEXT).text)
    assert "".join(p["response"] for p in pieces) == "Hello there, world."
    assert all("context" not in p for p in pieces) and last["response"] == ""
    assert len(last["context"]) == last["prompt_eval_count"] + last["eval_count"]


def test_a_talk_goes_on_from_the_ids_an_answer_gave(serving):
    server = serving()
    first = ask(server, ROUTE)["context"]
    second = ask(server, ROUTE, prompt="and now", context=first)
    served = server.models.served["fake:1b"]
    assert served.jobs[-1].prompt == (*first, *served.words.encode("and now"))
    assert second["context"][: len(first)] == first


def test_a_template_of_the_request_goes_with_its_chat(serving):
    server = serving()
    go = job(server, system="Be brief.", template="{{ .System }}{{ .Prompt }}")
    assert "{{- p -}}" in go.template and go.messages == (
        Message("system", "Be brief."),
        Message("user", "hi you"),
    )
    jinja = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert job(server, template=jinja).template == jinja
    assert job(server).template == job(server, template="").template == ""


def test_raw_is_the_prompt_itself_and_gives_no_ids(serving):
    server = serving()
    assert "context" not in ask(server, ROUTE, raw=True)
    assert server.models.served["fake:1b"].jobs[-1].prompt == "hi you"


def test_a_suffix_asks_for_what_lies_between(serving):
    asked = job(serving(), prompt="def f(", suffix="return 1")
    assert (asked.prompt, asked.suffix, asked.messages) == ("def f(", "return 1", None)
    assert job(serving(), suffix="").suffix is None


def test_without_a_prompt_the_model_is_loaded_or_unloaded(serving):
    server = serving()
    body = ask(server, ROUTE, prompt="")
    assert body["response"] == "" and body["done_reason"] == "load"
    assert ask(server, ROUTE, prompt="", keep_alive=0)["done_reason"] == "unload"
    assert not server.models.in_memory


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"images": ["aGk="]}, "images"),
        ({"template": "{{ range .Messages }}{{ end }}"}, "range .Messages"),
        ({"template": "{{ .Prompt }}", "raw": True}, "template"),
        ({"template": "{{ .Prompt }}", "suffix": "x"}, "suffix"),
        ({"template": "{{ .Prompt }}", "context": [1]}, "context"),
        ({"template": "x" * (1 << 18) + "x"}, "262,145 characters"),
        ({"raw": True, "system": "x"}, "raw"),
        ({"raw": True, "context": [1]}, "raw"),
        ({"suffix": "x", "context": [1]}, "suffix"),
        ({"raw": True, "think": True}, "think"),
        ({"context": [-1]}, "context"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(serving, fields, part):
    assert part in refused(serving(), ROUTE, **fields)


def test_an_unknown_model_is_not_found_by_name(serving):
    for fields in ({}, {"prompt": ""}, {"context": [1]}):
        assert refused(serving(), ROUTE, 404, model="nope", **fields).startswith("model 'nope' not found")


def test_clients_find_what_they_look_for_before_they_speak(serving):
    server = serving()
    assert server.client.get("/").text == "Ollama is running"
    assert server.client.head("/").status_code == 200
    version = server.client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)
    assert server.client.head("/api/version").status_code == 200
    assert server.client.head("/api/tags").status_code == 200
