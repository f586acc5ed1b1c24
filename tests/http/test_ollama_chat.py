"""POST /api/chat: every field and shape, whole and in lines."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base import errors
from freehold.base.types import Format, Message, Tool, ToolCall
from freehold.run.store.parameters import HONOURED
from freehold.serve.http.ollama.fields import MAX_UNANSWERED, CallIds
from tests.http.conftest import JSON
from tests.http.fakes import Script, failing
from tests.http.ollama_rig import CHAT, ask, error_of, job_of, lines, refused

ROUTE = "/api/chat"
CALLS = (("weather", '{"city": "Ulm"}'), ("clock", "{}"))


def stream(server, **fields):
    answer = server.client.post(ROUTE, json={**CHAT, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return lines(answer.text)


def test_a_whole_answer_has_ollamas_shape_and_a_receipt(serving):
    body = ask(serving(Script(text="Hello there.", thinking="hm", cached=1)), ROUTE, options={"seed": 11})
    assert body["model"] == "fake:1b" and body["created_at"].endswith("Z")
    assert body["message"] == {"role": "assistant", "content": "Hello there.", "thinking": "hm"}
    assert body["done"] is True and body["done_reason"] == "stop"
    assert (body["prompt_eval_count"], body["eval_count"]) == (2, 3)
    assert (body["prompt_eval_duration"], body["eval_duration"]) == (10_000_000, 20_000_000)
    assert body["total_duration"] >= body["load_duration"] >= 0
    assert body["freehold"]["sampling"]["seed"] == 11 and body["freehold"]["warnings"] == []


def test_streaming_is_the_default_and_its_lines_join_to_the_whole(serving):
    server = serving(Script(text="Hello there, world.", thinking="hm so"))
    *pieces, last = stream(server)
    assert "".join(p["message"]["content"] for p in pieces) == "Hello there, world."
    assert "".join(p["message"].get("thinking", "") for p in pieces) == "hm so"
    assert all(p["done"] is False and p["message"]["role"] == "assistant" for p in pieces)
    assert last["done"] is True and last["message"]["content"] == "" and last["eval_count"] == 5
    assert last["freehold"]["context"]["used"] == 7


def test_a_limit_reached_is_done_reason_length(serving):
    assert ask(serving(), ROUTE, options={"num_predict": 2})["done_reason"] == "length"


@pytest.mark.parametrize("streamed", [False, True])
def test_calls_of_tools_are_whole_and_their_arguments_objects(serving, streamed):
    server = serving(Script(text="", calls=CALLS))
    answers = stream(server) if streamed else [ask(server, ROUTE)]
    calls = [c for a in answers for c in a["message"].get("tool_calls", [])]
    assert calls == [
        {"id": "call_0", "function": {"index": 0, "name": "weather", "arguments": {"city": "Ulm"}}},
        {"id": "call_1", "function": {"index": 1, "name": "clock", "arguments": {}}},
    ]
    assert answers[-1]["done_reason"] == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_was_cut_off_is_left_out_and_told(serving, streamed):
    server = serving(Script(text="", calls=(("weather", '{"city":'),)))
    last = stream(server)[-1] if streamed else ask(server, ROUTE)
    assert "tool_calls" not in last["message"]
    assert "cut off" in last["freehold"]["warnings"][0]


def test_logprobs_have_bytes_and_alternatives(serving):
    body = ask(serving(Script(text="Hi")), ROUTE, logprobs=True, top_logprobs=2)
    (scored,) = body["logprobs"]
    assert scored["token"] == "Hi" and scored["bytes"] == [72, 105] and scored["logprob"] == -0.5
    assert [t["token"] for t in scored["top_logprobs"]] == ["Hi", "other1"]
    pieces = stream(serving(Script(text="Hi")), logprobs=True)
    assert pieces[0]["logprobs"][0]["top_logprobs"] == []
    assert "top_logprobs needs" in refused(serving(), ROUTE, top_logprobs=2)


# --- fields ------------------------------------------------------------------------------------------------


def test_options_become_the_jobs(serving):
    options = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repeat_penalty": 1.1,
        "repeat_last_n": 32,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 7,
        "num_predict": 5,
        "num_ctx": 2048,
        "stop": ["END"],
    }
    assert options.keys() == set(HONOURED)
    job = job_of(serving(), options=options)
    assert job.sampling == {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.1,
        "typical_p": 0.8,
        "repetition_penalty": 1.1,
        "penalty_window": 32,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 7,
    }
    assert (job.max_tokens, job.stop) == (5, ("END",))


def test_options_that_do_nothing_here_are_named(serving):
    body = ask(serving(), ROUTE, options={"num_gpu": 1, "num_thread": 4, "temprature": 0.1}, shift=True, x=1)
    told = "\n".join(body["freehold"]["warnings"])
    for part in ("num_gpu", "num_thread", "did you mean temperature?", "shift", "'x'"):
        assert part in told


def test_a_sampling_name_beside_options_is_pointed_to_them(serving):
    assert "options.temperature" in ask(serving(), ROUTE, temperature=0)["freehold"]["warnings"][0]


def test_more_context_than_there_is_is_told_and_never_cut(serving):
    body = ask(serving(), ROUTE, options={"num_ctx": 100_000})
    assert (
        "num_ctx is 100,000" in body["freehold"]["warnings"][0] and "4,096" in body["freehold"]["warnings"][0]
    )
    assert ask(serving(), ROUTE, options={"num_ctx": 4096})["freehold"]["warnings"] == []


def test_a_chat_is_cut_only_when_that_is_asked_for(serving):
    assert job_of(serving()).overflow == "error"
    assert job_of(serving(), truncate=False).overflow == "error"
    assert job_of(serving(), truncate=True).overflow == "drop-oldest"
    assert (
        ask(serving(Script(dropped=3)), ROUTE, truncate=True)["freehold"]["context"]["dropped_messages"] == 3
    )


def test_a_chat_that_is_too_long_is_told_the_field_of_this_protocol(serving):
    long = errors.ContextOverflow("prompt has 9 tokens", "load it with --context 16384, shorten the prompt")
    told = error_of(serving(failing("start", long)).client.post(ROUTE, json=CHAT), 400)
    assert '"truncate": true' in told and "overflow" not in told
    long = errors.ContextOverflow("text 0 has 9 tokens", "ask for it to be cut (truncate)")
    told = error_of(serving(failing("start", long)).client.post(ROUTE, json=CHAT), 400)
    assert told == "text 0 has 9 tokens; ask for it to be cut (truncate)"


@pytest.mark.parametrize(
    "think, want",
    [(None, (None, None)), (True, (True, None)), (False, (False, None)), ("low", (True, "low"))],
)
def test_think_is_a_switch_or_an_effort(serving, think, want):
    job = job_of(serving(), think=think)
    assert (job.think, job.effort) == want


def test_the_most_thinking_is_what_templates_call_high(serving):
    server = serving()
    body = ask(server, ROUTE, think="max")
    assert (
        server.models.served["fake:1b"].jobs[-1].effort == "high" and "max" in body["freehold"]["warnings"][0]
    )


def test_a_format_is_json_or_a_schema(serving):
    assert job_of(serving(), format="json").format == Format("json")
    assert job_of(serving(), format={"type": "object"}).format == Format("json_schema", '{"type":"object"}')
    assert job_of(serving(), format="").format is None
    assert "expected 'json'" in refused(serving(), ROUTE, format="yaml")
    assert "at most" in refused(serving(), ROUTE, format={"enum": ["x" * (1 << 18)]})


def test_tools_are_handed_on(serving):
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    job = job_of(serving(), tools=[{"type": "function", "function": function}])
    assert job.tools == (Tool("f", "d", {"type": "object"}),)
    assert job_of(serving(), tools=[]).tools == ()
    assert "at most" in refused(
        serving(), ROUTE, tools=[{"function": {"name": "f", "description": "x" * (1 << 18)}}]
    )


def test_calls_and_their_results_find_each_other_without_ids(serving):
    called = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("a", "b", "a")]
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": called},
        {"role": "tool", "tool_name": "b", "content": "B"},
        {"role": "tool", "content": "A1"},
        {"role": "tool", "tool_name": "a", "content": "A2"},
    ]
    got = job_of(serving(), messages=messages).messages
    calls = tuple(ToolCall(f"call_{i + 1}", name, '{"x":1}') for i, name in enumerate("aba"))
    assert got[1] == Message("assistant", "", "hm", calls)
    assert [(m.tool_call_id, m.name) for m in got[2:]] == [("call_2", "b"), ("call_1", "a"), ("call_3", "a")]


@pytest.mark.parametrize("id", [{}, {"tool_call_id": "c9"}])
def test_results_and_calls_stand_where_they_like_as_in_ollama(serving, id):
    stray = {"role": "tool", "tool_name": "a", "content": "A", **id}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "b"}}]}
    messages = [stray, call, {"role": "user", "content": "go"}]
    assert [m.role for m in job_of(serving(), messages=messages).messages] == ["tool", "assistant", "user"]


def test_a_result_without_an_id_is_looked_for_among_the_latest_calls():
    ids = CallIds()
    for i in range(MAX_UNANSWERED + 1):
        ids.called("old" if i == 0 else "new", f"call {i}")
    assert ids.answered("old", None) == ("", "old")
    assert ids.answered("old", "call 0") == ("call 0", "old")  # who says the id needs no search
    assert ids.answered("new", None) == ("call 1", "new")


ids, names = st.sampled_from([None, "", "x", "y"]), st.sampled_from(["a", "b"])


@pytest.mark.heavy
@given(st.lists(st.tuples(st.booleans(), names | st.just(""), ids), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_results_answer_the_open_calls_in_their_order_each_once(turns):
    known, waiting = CallIds(), []
    for is_call, name, id in turns:
        if is_call:
            waiting.append((name, known.called(name, id)))
            assert waiting[-1][1] == id if id else waiting[-1][1].startswith("call_")
            continue
        fits = [call for call in waiting if (call[1] == id if id else name in ("", call[0]))]
        assert known.answered(name, id) == ((fits[0][1], name or fits[0][0]) if fits else (id or "", name))
        if fits:
            waiting.remove(fits[0])


def test_what_a_model_cannot_read_is_refused_by_name(serving):
    image = {"role": "user", "content": "x", "images": ["aGk="]}
    assert "messages[0].images" in refused(serving(), ROUTE, messages=[image])
    with_calls = {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
    assert "has tool_calls" in refused(serving(), ROUTE, messages=[with_calls])


def test_a_strange_field_of_a_message_is_named(serving):
    body = ask(serving(), ROUTE, messages=[{"role": "user", "content": "x", "colour": "red"}])
    assert "'colour' of messages" in body["freehold"]["warnings"][0]


# --- loading and unloading -----------------------------------------------------------------------------


@pytest.mark.parametrize("messages", [None, []])
def test_no_messages_load_the_model(serving, messages):
    server = serving()
    body = ask(server, ROUTE, messages=messages, keep_alive="10m")
    assert body["done"] is True and body["done_reason"] == "load"
    assert body["message"] == {"role": "assistant", "content": ""}
    assert server.models.used[-1] == ("fake:1b", 600.0) and list(server.models.in_memory) == ["fake:1b"]


def test_no_messages_and_no_keep_alive_unload_it(serving):
    server = serving()
    ask(server, ROUTE, messages=[])
    assert ask(server, ROUTE, messages=[], keep_alive=0)["done_reason"] == "unload"
    assert not server.models.in_memory
    assert ask(server, ROUTE, messages=[], keep_alive="0")["done_reason"] == "unload"


def test_a_model_that_answers_is_unloaded_when_it_has_answered(serving):
    server = serving()
    ask(server, ROUTE)
    served = server.models.in_memory["fake:1b"]
    served.loaded.in_flight += 1
    ask(server, ROUTE, messages=[], keep_alive=0)
    served.loaded.in_flight -= 1
    assert "fake:1b" in server.models.in_memory and server.models.used[-1] == ("fake:1b", 0.0)


@pytest.mark.parametrize("given, want", [(-1, -1.0), ("24h", 86400.0), (0, 0.0), (None, None)])
def test_keep_alive_is_seconds_or_a_duration(serving, given, want):
    server = serving()
    ask(server, ROUTE, keep_alive=given)
    assert server.models.served["fake:1b"].keep_alives[-1] == want


def test_latest_may_be_written(serving):
    assert ask(serving(), ROUTE, model="fake:1b:latest")["model"] == "fake:1b:latest"


# --- errors ------------------------------------------------------------------------------------------------


def test_an_unknown_model_that_is_only_to_be_loaded_is_not_found_by_name(serving):
    assert refused(serving(), ROUTE, 404, model="nope", messages=[]).startswith("model 'nope' not found")


@pytest.mark.parametrize(
    "error, status",
    [
        (errors.Overloaded("the queue is full", wait_s=3), 503),
        (errors.CapacityExceeded("no memory"), 503),
        (errors.UsageError("think: no such switch"), 400),
        (errors.BadTemplate("roles must alternate"), 400),
        (RuntimeError("boom"), 500),
    ],
)
def test_failures_before_the_first_line_have_their_status(serving, error, status):
    refused(serving(failing("start", error)), ROUTE, status)


def test_a_full_queue_says_when_to_come_back(serving):
    server = serving(failing("start", errors.Overloaded("the queue is full", wait_s=3)))
    assert int(server.client.post(ROUTE, json=CHAT).headers["retry-after"]) >= 3


def test_a_failure_midway_is_the_last_line(serving):
    *pieces, last = stream(serving(failing(1, errors.EngineLost("the engine died"))))
    assert pieces and pieces[-1]["done"] is False and last == {"error": "the engine died"}


@pytest.mark.parametrize(
    "fields, part",
    [
        ({"options": {"temperature": "hot"}}, "temperature"),
        ({"options": {"num_predict": 1.5}}, "num_predict"),
        ({"options": {"stop": [1]}}, "stop"),
        ({"options": {f"o{i}": 1 for i in range(200)}}, "200 options"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"think": "a lot"}, "think"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"model": ""}, "model"),
        ({"tools": [{"function": {"name": "f"}}] * 129}, "tools"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(serving, fields, part):
    assert part in refused(serving(), ROUTE, **fields)


def test_errors_before_any_route_are_in_this_protocols_words(serving):
    server = serving()
    error_of(server.client.post(ROUTE, content=b"{", headers=JSON), 400)
    error_of(server.client.get(ROUTE), 405)
    error_of(server.client.post("/api/nothing", json={}), 404)
    error_of(server.client.post(ROUTE, json=CHAT, headers={"host": "evil.example"}), 403)


# --- signs of life -----------------------------------------------------------------------------------------


def test_silence_is_filled_with_whole_objects(serving):
    server = serving(Script(use_delay=0.4), keep_alive_s=0.1)
    began = time.monotonic()
    got = stream(server)
    assert time.monotonic() - began > 0.3
    beats = [p for p in got if not p["done"] and not p["message"]["content"]]
    assert len(beats) >= 2 and all(b["message"]["role"] == "assistant" for b in beats)


# --- a last message that is the assistant's ---------------------------------------------------------------


def test_last_message_of_the_assistant_is_continued(serving):
    asked = {"role": "user", "content": "Name a colour."}
    begun = {"role": "assistant", "content": "The colour is"}
    job = job_of(serving(), messages=[asked, begun])
    assert job.turn == "continue" and job.messages[-1].content == "The colour is"
    thought = {"role": "assistant", "content": "", "thinking": "The sky"}
    assert job_of(serving(), messages=[asked, thought]).turn == "continue"
    empty = job_of(serving(), messages=[asked, {"role": "assistant", "content": ""}])
    assert empty.turn == "new" and len(empty.messages) == 1
    called = {**begun, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    assert job_of(serving(), messages=[asked, called]).turn == "new"


def test_numbers_beyond_their_range_are_the_nearest_and_told(serving):
    options = {"temperature": -1, "top_p": 1.5, "min_p": -0.5, "typical_p": 0, "repeat_penalty": 0}
    server = serving()
    told = ask(server, ROUTE, options=options)["freehold"]["warnings"]
    sampling = server.models.served["fake:1b"].jobs[-1].sampling
    assert sampling == {
        "temperature": 0,
        "top_p": 1,
        "min_p": 0,
        "typical_p": 1e-6,
        "repetition_penalty": 1,
    }
    assert len(told) == 5 and told[0] == "option temperature is -1; 0 was used"
    assert "top_p is 'x'" in refused(server, ROUTE, options={"top_p": "x"})
