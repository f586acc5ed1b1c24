"""What OpenAI's wire and its dialects refuse, warn of, and make of odd answers and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.base.errors import UnsupportedModel, UsageError
from freehold.base.serving import EmbedJob, Job
from freehold.base.types import Audio, Format, Image, Message, Tool, ToolCall
from freehold.route.providers.contract import Abilities, Kind, Provider, RemoteModel, Secret, UpstreamFault
from freehold.route.providers.faults import cleaned
from freehold.route.providers.upstream import wire_of
from tests.providers.sending import ALL, FAMILY, HELLO, calls, chunks, joined, remote
from tests.providers.standin import Answer, Call, StandIn, Tokens

USER = Message("user", "Hello")
PNG = Image("image/png", "iVBORw0KGgo=")


def model(kind: Kind = "openai", name: str = "gpt-4.1", can: Abilities = ALL) -> RemoteModel:
    return RemoteModel(Provider("far", kind, "https://far.example/v1"), name, abilities=can)


def sent(job: Job, kind: Kind = "openai", name: str = "gpt-4.1", *, stream: bool = False) -> dict[str, Any]:
    return json.loads(wire_of(kind).request(model(kind, name), job, stream=stream).body)


def warned(job: Job, kind: Kind = "openai", name: str = "gpt-4.1") -> str:
    return "; ".join(wire_of(kind).request(model(kind, name), job, stream=False).warnings)


def asked(**more: Any) -> Job:
    return Job(messages=(USER,), **more)


def event(delta: Any = None, reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": reason}
    return json.dumps({"id": "a", "choices": [choice], **more}).encode()


@pytest.mark.parametrize("job, why", [
    (Job(prompt="bare text"), "supports neither text completion"),
    (asked(template="{{ x }}"), "chat template"),
    (asked(adapter="mine"), "adapters"),
    (asked(ignore_eos=True), "ignore_eos"),
    (asked(prompt_logprobs=1), "log-probabilities for prompts"),
    (asked(turn="continue"), "does not continue"),
    (asked(turn="none"), "prompt without"),
    (asked(format=Format("regex", "a+")), "format of kind regex"),
    (asked(stop=("a", "b", "c", "d", "e")), "4 stop strings, not 5"),
    (Job(messages=(Message("tool", "", tool_call_id="c", parts=(PNG,)),)), "not accept pictures in a turn"),
    (Job(messages=(Message("user", "x", parts=("x", Audio("AAAA"))),)), "cannot receive audio"),
])  # fmt: skip
def test_what_openai_cannot_do_is_refused_before_it_is_asked(job: Job, why: str):
    with pytest.raises(UnsupportedModel, match=why):
        sent(job)


@pytest.mark.parametrize("job, can, why", [
    (asked(n=2), Abilities(), "one answer per request, not 2"),
    (asked(logprobs=0), Abilities(), "no log-probabilities"),
    (asked(tools=(Tool("f"),)), Abilities(tools=False), "does not support tools"),
    (asked(format=Format("json_schema", {})), Abilities(json_schema=False), "json_schema"),
    (Job(messages=(Message("user", "", parts=(PNG,)),)), Abilities(images=False), "pictures"),
])  # fmt: skip
@pytest.mark.parametrize("kind", FAMILY)
def test_what_a_model_cannot_do_is_refused_before_it_is_asked(kind: Kind, job: Job, can: Abilities, why: str):
    if kind == "deepseek" and job.format:
        why = "format of kind json_schema"
    with pytest.raises(UnsupportedModel, match=why):
        wire_of(kind).request(model(kind, can=can), job, stream=True)


def test_marks_of_a_cache_are_left_out_with_a_warning():
    tools = (Tool("a"),)
    assert "cache was left out" in warned(asked(tools=tools, cache_tools="5m"))
    assert "cache was left out" not in warned(asked(tools=tools))


def test_a_model_that_thinks_gets_no_sampling_and_says_so():
    job = asked(sampling={"temperature": 0.3, "seed": 5}, think=False, max_tokens=7)
    body = sent(job, name="gpt-5.4")
    assert "temperature" not in body and body["seed"] == 5 and body["max_completion_tokens"] == 7
    assert body["reasoning_effort"] == "none"
    assert "temperature was left out" in warned(job, name="gpt-5.4") and "always thinks" in warned(
        job, name="o4-mini"
    )
    assert sent(job, name="gpt-5-chat-latest")["temperature"] == 0.3
    with pytest.raises(UnsupportedModel, match="it thinks"):
        sent(asked(logprobs=1), name="o3")


@pytest.mark.parametrize("name, least", [
    ("gpt-5-mini", "minimal"),
    ("gpt-5.1", "none"),
    ("gpt-6.2-sol", "none"),
    ("gpt-5.3-codex", "low"),
    ("o3", "low"),
    ("gpt-5-pro", None),
])  # fmt: skip
def test_least_effort_is_one_that_the_model_takes(name: str, least: str | None):
    job = asked(think=False)
    assert sent(job, name=name).get("reasoning_effort") == least
    assert ("always thinks" in warned(job, name=name)) == (least != "none")


def test_what_shapes_tokens_and_is_not_known_is_warned_of():
    job = asked(sampling={"top_k": 5, "min_p": 0.1}, think_tokens=10, effort="low")
    said = warned(job)
    assert all(name in said for name in ("top_k", "min_p", "think_tokens", "effort"))
    assert sent(job, "openai-compatible")["top_k"] == 5
    assert "parallel_tool_calls" in warned(asked(tools=(Tool("f"),), parallel_tool_calls=False), "deepseek")
    failed = Job(messages=(USER, Message("tool", "no", tool_call_id="c", failed=True)))
    assert "a tool that failed" in warned(failed)
    assert "reasoning" in warned(Job(messages=(USER, Message("assistant", "x", thinking="y"), USER)))


def test_reasoning_of_a_turn_that_called_goes_back_to_deepseek_even_when_empty():
    turns = (
        USER,
        Message("assistant", "", tool_calls=(ToolCall("c", "f", "{}"),)),
        Message("tool", "1", tool_call_id="c"),
    )
    said = sent(Job(messages=turns, tools=(Tool("f"),)), "deepseek")["messages"][1]
    assert said["reasoning_content"] == ""


def test_ids_that_mistral_would_refuse_are_replaced_the_same_way_everywhere():
    call = ToolCall("call_0123456789abcdef", "f", "{}")
    turns = (
        USER,
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "1", tool_call_id=call.id, name="f"),
    )
    said = sent(Job(messages=turns, tools=(Tool("f"),)), "mistral")["messages"]
    assert said[1]["tool_calls"][0]["id"] == said[2]["tool_call_id"]
    assert len(said[2]["tool_call_id"]) == 9 and said[2]["tool_call_id"].isalnum()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", FAMILY)
def test_a_tool_is_called_over_three_turns(standin: StandIn, hopping, kind: Kind, stream: bool):
    weather = Tool("weather", "the weather", {"type": "object", "properties": {"city": {"type": "string"}}})
    standin.say += [
        Answer(
            (), ("Paris?",), calls=(Call("abcDEF123", "weather", '{"city": "Paris"}'),), finish="tool_calls"
        ),
        Answer((), calls=(Call("abcDEF124", "weather", '{"city": "Rome"}'),), finish="tool_calls"),
        Answer(("18 C and 25 C",)),
    ]
    turns = [Message("user", "Paris and Rome?")]
    for _ in range(2):
        job = Job(messages=tuple(turns), tools=(weather,))
        pieces = hopping(lambda hop, j=job: chunks(hop, remote(standin, kind), j, stream=stream))
        assert joined(pieces).finish_reason == "tool_calls"
        (made,) = calls(pieces)
        thinking = joined(pieces).thinking
        turns += [Message("assistant", "", thinking=thinking, tool_calls=(made,)),
                  Message("tool", "18 C", tool_call_id=made.id, name=made.name)]  # fmt: skip
    job = Job(messages=tuple(turns), tools=(weather,))
    last = joined(hopping(lambda hop: chunks(hop, remote(standin, kind), job, stream=stream)))
    assert last.text == "18 C and 25 C"
    assert [r.ended for r in standin.received] == ["whole"] * 3
    assert turns[1].tool_calls[0].arguments == '{"city": "Paris"}'


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "finish, reason", [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter")]
)
def test_an_answer_s_end_keeps_its_reason(standin: StandIn, hopping, finish, reason, stream):
    standin.say.append(Answer(("so",), finish=finish))
    assert joined(hopping(lambda hop: chunks(hop, remote(standin), stream=stream))).finish_reason == reason


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_told_apart_from_text(standin: StandIn, hopping, stream):
    standin.say.append(Answer((), refusal="I cannot.", finish="refusal"))
    got = joined(hopping(lambda hop: chunks(hop, remote(standin), stream=stream)))
    assert (got.text, got.refusal, got.finish_reason) == ("", "I cannot.", "refusal")


@pytest.mark.parametrize("stream", [True, False])
def test_of_several_answers_the_last_counts_for_all(standin: StandIn, hopping, stream):
    standin.say.append(Answer(("a", "b"), answers=3, tokens=Tokens(9, 6)))
    pieces = hopping(lambda hop: chunks(hop, remote(standin), asked(n=3), stream=stream))
    ends = [joined(pieces, i) for i in range(3)]
    assert [e.text for e in ends] == ["ab"] * 3
    assert [e.usage.completion_tokens for e in ends if e.usage] == [0, 0, 6]


@pytest.mark.parametrize("stream", [True, False])
def test_written_tokens_are_counted_apart_within_the_prompt(standin: StandIn, hopping, stream):
    standin.say.append(Answer(tokens=Tokens(900, 3, cached=300, written=500)))
    usage = joined(hopping(lambda hop: chunks(hop, remote(standin), stream=stream))).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.cached_tokens, usage.written_tokens) == (900, 300, 500)


def test_an_answer_without_usage_says_that_there_is_none(standin: StandIn, hopping):
    standin.say.append(Answer(sends_usage=False))
    assert joined(hopping(lambda hop: chunks(hop, remote(standin)))).usage is None


@pytest.mark.parametrize("events, cause", [
    ([event({"content": "a"}), b"[DONE]"], "broken"),
    ([b"[DONE]"], "broken"),
    ([event({"content": "a"}, "error")], "server"),
    ([event({}, "insufficient_system_resource")], "server"),
    ([event({"content": "a"}, usage={"prompt_tokens": 2.5, "completion_tokens": 1})], "invalid"),
    ([b"{not json"], "invalid"),
    ([b'{"choices": 7}'], "invalid"),
    ([b'{"choices": [{"index": 5, "delta": {"content": "a"}}]}'], "invalid"),
    ([b'{"error": {"message": "slow down", "type": "rate_limit_error"}}'], "rate"),
    ([b'{"error": "boom"}'], "server"),
    ([event({"tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "{}"}}]})], "invalid"),
    ([event({"content": "a"}, usage={"prompt_tokens": -1, "completion_tokens": 1})], "invalid"),
])  # fmt: skip
def test_nonsense_in_a_stream_has_its_cause(events: list[bytes], cause: str):
    reader = wire_of("openai").reader(HELLO)
    with pytest.raises(UpstreamFault) as caught:
        for data in events:
            reader.push("", data)
    assert caught.value.cause == cause


COUNTS = b'{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}'
ODD = {
    "no [DONE]": [event({"content": "a"}), event({}, "stop")],
    "an unknown reason": [event({"content": "a"}), event({}, "because"), b"[DONE]"],
    "no reason, counts": [event({"content": "a"}), COUNTS, b"[DONE]"],
}
PLAIN = {
    "eos": [event({"content": "a"}, "eos"), b"[DONE]"],
    "an empty reason before the end": [event({"content": "a"}, ""), event({}, "stop"), b"[DONE]"],
    "no choices": [event({"content": "a"}, "stop"), b'{"choices": null, "usage": null}', b"[DONE]"],
    "counts of null": [
        event({"content": "a"}, "stop"),
        b'{"choices": [], "usage": {"prompt_tokens": null, "completion_tokens": null}}',
        b"[DONE]",
    ],
    "counts with a point": [
        event({"content": "a"}, "stop"),
        b'{"choices": [], "usage": {"prompt_tokens": 2.0, "completion_tokens": 1.0, "total_tokens": 3.0}}',
        b"[DONE]",
    ],
}


@pytest.mark.parametrize("name", [*ODD, *PLAIN])
def test_an_answer_that_is_whole_in_a_way_of_its_own_is_taken(name: str):
    reader = wire_of("openai-compatible").reader(HELLO)
    pieces = [piece for data in (ODD | PLAIN)[name] for piece in reader.push("", data)]
    pieces += () if reader.ended else reader.closed()
    got = joined(pieces)
    assert (got.text, got.finish_reason) == ("a", "stop") and len(reader.oddities) == (name in ODD)
    assert (got.usage is not None) == (name in ("counts with a point", "no reason, counts"))


@pytest.mark.parametrize("message, whole", [({"content": "a"}, True), ({}, False)])
def test_a_whole_body_without_a_reason_is_taken_where_it_has_content(message: dict[str, Any], whole: bool):
    wire = wire_of("openai-compatible")
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": None}]}).encode()
    if whole:
        answer = wire.whole(body, HELLO)
        ((_, chunk),) = answer.pieces
        assert (chunk.text, chunk.finish_reason) == ("a", "stop") and len(answer.oddities) == 1
        return
    with pytest.raises(UpstreamFault, match="without its reason"):
        wire.whole(body, HELLO)


@pytest.mark.parametrize("events", [[], [event({"content": "a"})], [COUNTS]])
def test_a_stream_that_ends_before_its_reason_is_broken(events: list[bytes]):
    reader = wire_of("openai").reader(HELLO)
    for data in events:
        reader.push("", data)
    with pytest.raises(UpstreamFault) as caught:
        reader.closed()
    assert caught.value.cause == "broken"


def test_calls_that_share_a_number_or_have_no_id_stay_apart():
    reader = wire_of("openai-compatible").reader(HELLO)
    one = {"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    two = {"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}
    three = {"index": 1, "function": {"name": "h", "arguments": "{}"}}
    pieces = [p for call in (one, two, three) for p in reader.push("", event({"tool_calls": [call]}))]
    made = calls(pieces)
    assert [(c.name, c.arguments) for c in made] == [("f", '{"x":1}'), ("g", "{}"), ("h", "{}")]
    assert [c.id for c in made[:2]] == ["a", "b"] and made[2].id.startswith("call_")
    ((_, end),) = (*reader.push("", event({}, "stop")), *reader.push("", b"[DONE]"))
    assert end.finish_reason == "tool_calls"


@pytest.mark.parametrize("status, body, cause", [
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, "context"),
    (400, {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}}, "context"),
    (400, {"object": "error", "message": "This model's maximum context length is 8192 tokens"}, "context"),
    (400, {"message": "Prompt contains 9 tokens, too large for model with 8 maximum context length"}, "context"),
    (422, {"object": "error", "message": {"detail": [{"loc": ["body"], "msg": "no"}]}}, "request"),
    (400, {"error": "the input length exceeds the context length"}, "context"),
    (404, {"detail": "Not Found"}, "request"),
    (502, None, "server"),
])  # fmt: skip
def test_errors_of_every_shape_have_their_cause(status: int, body: Any, cause: str):
    raw = json.dumps(body).encode() if body is not None else b"<html>secret page</html>"
    fault = wire_of("openai-compatible").fault(status, {"Retry-After": "3"}, raw)
    assert (fault.cause, fault.status, fault.retry_after_s) == (cause, status, 3.0)
    assert "secret page" not in fault.message


def test_keys_are_taken_out_of_errors_whole_or_in_part():
    key = Secret("unlikely0prefix0key0of0no0known0look")
    for said in (f"key {key.value} is bad", f"key {key.value[:14]}... is bad", f"'...{key.value[-10:]}'",
                 f"twice {key.value[:9]} and {key.value[9:20]}"):  # fmt: skip
        shown = cleaned(said, [key])
        assert not any(key.value[i : i + 8] in shown for i in range(len(key.value) - 7)), shown
    assert (
        cleaned("no key here: a plain remark about tokens", [key])
        == "no key here: a plain remark about tokens"
    )


def test_embeddings_refuse_what_would_be_another_vector():
    wire = wire_of("openai")
    with pytest.raises(UsageError, match="token ids"):
        wire.embed(model(), EmbedJob(((1, 2),)))
    with pytest.raises(UnsupportedModel, match="pooling"):
        wire.embed(model(), EmbedJob(("a",), pooling="mean"))
    with pytest.raises(UnsupportedModel, match="has no embeddings"):
        wire.embed(model(can=Abilities(embeddings=False)), EmbedJob(("a",)))
    for rows in ([], [{"index": 0, "embedding": [0.0, 0.0]}], [{"index": 1, "embedding": [1.0]}],
                 [{"index": 0, "embedding": "///"}], [{"index": 0, "embedding": []}]):  # fmt: skip
        with pytest.raises(UpstreamFault):
            wire.vectors(json.dumps({"data": rows}).encode(), EmbedJob(("a",)))
