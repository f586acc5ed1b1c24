"""What rented models add to answers, in each protocol's words: signatures, refusals, written tokens, a name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from freehold.base.types import Chunk, Message, SignedThinking, ToolCall, ToolPiece, Usage
from freehold.route.providers.signatures import STAMP
from tests.http.conftest import Running
from tests.http.fakes import Script
from tests.http.test_chat import events

MODEL = "fake:1b"
CHAT = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": CHAT, "max_tokens": 50},
    "/api/chat": {"messages": CHAT},
}
USAGE = Usage(100, 20, 40, written_tokens=10, written_hour_tokens=5, thought_tokens=7)
SIGNED = SignedThinking("Let me see.", STAMP + "aa.sig+/=")
HIDDEN = SignedThinking(redacted=STAMP + "aa.blob")
CALLED = ToolPiece(0, "call_1", "look", "{}")
THOUGHT = (
    Chunk(thinking="Let me"),
    Chunk(thinking=" see."),
    Chunk(signed=(SIGNED,)),
    Chunk(signed=(HIDDEN,)),
    Chunk("Yes."),
    Chunk(tool_calls=(CALLED,)),
    Chunk(finish_reason="tool_calls", usage=USAGE),
)


def end(reason: Any) -> Chunk:
    return Chunk(finish_reason=reason, usage=USAGE)


def ask(server: Running, route: str, **more: Any) -> Any:
    answer = server.client.post(route, json={"model": MODEL, "stream": False, **BODIES[route], **more})
    assert answer.status_code == 200, answer.text
    return answer


def lines(server: Running, route: str, **more: Any) -> list[dict[str, Any]]:
    said = ask(server, route, stream=True, **more).text
    return [
        json.loads(line.removeprefix("data: "))
        for line in said.splitlines()
        if line.startswith(("data: {", "{"))
    ]


def folded(server: Running, route: str = "/v1/messages") -> list[dict[str, Any]]:
    """Return the content blocks that a stream of Anthropic's describes."""
    blocks: list[dict[str, Any]] = []
    for event in lines(server, route):
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
        if event["type"] == "content_block_delta":
            for name, value in event["delta"].items():
                if name not in ("type", "partial_json"):
                    blocks[-1][name] += value
    return blocks


# --- signed reasoning ---------------------------------------------------------------------------------

BLOCKS = [
    {"type": "thinking", "thinking": SIGNED.text, "signature": SIGNED.signature},
    {"type": "redacted_thinking", "data": HIDDEN.redacted},
    {"type": "text", "text": "Yes."},
    {"type": "tool_use", "id": "call_1", "name": "look", "input": {}},
]


def test_messages_carry_the_providers_own_signature(serving):
    server = serving(Script(chunks=THOUGHT, remote=True))
    assert ask(server, "/v1/messages").json()["content"] == BLOCKS
    assert folded(server) == BLOCKS


def test_a_signature_without_shown_thinking_has_a_block(serving):
    chunks = (Chunk(signed=(SignedThinking("", SIGNED.signature),)), Chunk("Yes."), end("stop"))
    server = serving(Script(chunks=chunks, remote=True))
    expected = [{**BLOCKS[0], "thinking": ""}, BLOCKS[2]]
    assert ask(server, "/v1/messages").json()["content"] == expected == folded(server)


def test_hidden_thinking_keeps_the_providers_signature(serving):
    server = serving(Script(chunks=THOUGHT, remote=True))
    thinking = {"type": "adaptive", "display": "omitted"}
    content = ask(server, "/v1/messages", thinking=thinking).json()["content"]
    assert content[0] == {**BLOCKS[0], "thinking": ""}


def test_blocks_of_a_message_return_in_their_places(serving):
    server = serving(Script(remote=True))
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "x"}]}
    later = {**BLOCKS[0], "signature": STAMP + "aa.second"}
    said = {"role": "assistant", "content": [*BLOCKS[:3], later, BLOCKS[3]]}
    ask(server, "/v1/messages", messages=[*CHAT, said, result])
    message = server.models.served[MODEL].jobs[-1].messages[1]
    assert message.signed == (
        SIGNED,
        HIDDEN,
        SignedThinking(SIGNED.text, STAMP + "aa.second", text_before=len("Yes.")),
    )
    assert (message.content, message.thinking) == ("Yes.", SIGNED.text * 2)


@pytest.mark.parametrize("block", [{**BLOCKS[0], "signature": "EqQB"}, {**BLOCKS[1], "data": "EmwK"}])
def test_blocks_that_came_by_another_way_are_not_signed_here(serving, block):
    server = serving(Script(remote=True))
    said = {"role": "assistant", "content": [block, {"type": "text", "text": "Yes."}]}
    answer = ask(server, "/v1/messages", messages=[*CHAT, said, *CHAT]).json()
    assert server.models.served[MODEL].jobs[-1].messages[1].signed == ()
    hidden = block["type"] == "redacted_thinking"
    assert any("redacted_thinking" in w for w in answer["freehold"]["warnings"]) == hidden


@pytest.mark.parametrize("stream", [False, True])
def test_responses_carry_signed_reasoning_out_and_back(serving, stream):
    server = serving(Script(chunks=THOUGHT, remote=True))
    include = ["reasoning.encrypted_content"]
    if stream:
        body = lines(server, "/v1/responses", include=include)[-1]["response"]
    else:
        body = ask(server, "/v1/responses", include=include).json()
    output = body["output"]
    assert [item["type"] for item in output] == ["reasoning", "reasoning", "message", "function_call"]
    assert body["freehold"]["warnings"] == []
    result = {"type": "function_call_output", "call_id": "call_1", "output": "x"}
    ask(server, "/v1/responses", input=[*CHAT, *output, result])
    assert server.models.served[MODEL].jobs[-1].messages[1] == Message(
        "assistant", "Yes.", SIGNED.text, (ToolCall("call_1", "look", "{}"),), signed=(SIGNED, HIDDEN)
    )


def test_a_stored_response_keeps_its_signed_reasoning(serving):
    server = serving(Script(chunks=(*THOUGHT[:-2], end("stop")), remote=True))
    first = ask(server, "/v1/responses").json()
    ask(server, "/v1/responses", input="and now?", previous_response_id=first["id"])
    assert server.models.served[MODEL].jobs[-1].messages[1].signed == (SIGNED, HIDDEN)


def test_chats_show_reasoning_and_leave_signatures_to_the_gateway(serving):
    server = serving(Script(chunks=THOUGHT, remote=True))
    answer = ask(server, "/v1/chat/completions")
    message = answer.json()["choices"][0]["message"]
    assert message["reasoning_content"] == SIGNED.text and STAMP not in answer.text


# --- refusals and filters -----------------------------------------------------------------------------

DECLINED = (Chunk(refusal="I can"), Chunk(refusal="not."), end("refusal"))


def test_a_refusal_is_told_in_openais_words(serving):
    server = serving(Script(chunks=DECLINED, remote=True))
    choice = ask(server, "/v1/chat/completions").json()["choices"][0]
    assert choice["message"]["refusal"] == "I cannot." and choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop"
    got = events(ask(server, "/v1/chat/completions", stream=True).text)
    deltas = [c["delta"].get("refusal") for e in got for c in e["choices"]]
    assert "".join(d for d in deltas if d) == "I cannot."
    assert [c["finish_reason"] for e in got for c in e["choices"] if c["finish_reason"]] == ["stop"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_part_of_a_response(serving, stream):
    server = serving(Script(chunks=DECLINED, remote=True))
    if stream:
        *got, last = lines(server, "/v1/responses")
        body = last["response"]
        kinds = [e["type"] for e in got]
        assert kinds.count("response.refusal.delta") == 2 and "response.refusal.done" in kinds
        assert "response.output_text.delta" not in kinds
    else:
        body = ask(server, "/v1/responses").json()
    assert body["status"] == "completed"
    (item,) = body["output"]
    assert item["content"] == [{"type": "refusal", "refusal": "I cannot."}]


@pytest.mark.parametrize("reason", ["refusal", "stop"])
def test_a_refusal_ends_a_message_of_anthropics(serving, reason):
    server = serving(Script(chunks=(*DECLINED[:2], end(reason)), remote=True))
    body = ask(server, "/v1/messages").json()
    assert body["stop_reason"] == "refusal" and body["content"] == [{"type": "text", "text": "I cannot."}]
    deltas = [e["delta"] for e in lines(server, "/v1/messages") if e["type"] == "message_delta"]
    assert [d["stop_reason"] for d in deltas] == ["refusal"]


def test_a_refusal_is_the_text_of_a_line_of_ollamas(serving):
    server = serving(Script(chunks=DECLINED, remote=True))
    body = ask(server, "/api/chat").json()
    assert (body["message"]["content"], body["done_reason"]) == ("I cannot.", "refusal")
    got = lines(server, "/api/chat")
    assert "".join(line["message"]["content"] for line in got) == "I cannot."


FILTERED = {
    "/v1/chat/completions": lambda b: b["choices"][0]["finish_reason"] == "content_filter",
    "/v1/responses": lambda b: b["incomplete_details"] == {"reason": "content_filter"},
    "/v1/messages": lambda b: b["stop_reason"] == "refusal",
    "/api/chat": lambda b: b["done_reason"] == "content_filter",
}


@pytest.mark.parametrize("route", BODIES)
def test_a_filter_is_named_in_each_protocol(serving, route):
    server = serving(Script(chunks=(Chunk("Well"), end("content_filter")), remote=True))
    assert FILTERED[route](ask(server, route).json())


def test_a_filtered_response_is_incomplete(serving):
    server = serving(Script(chunks=(Chunk("Well"), end("content_filter")), remote=True))
    last = lines(server, "/v1/responses")[-1]
    assert last["type"] == "response.incomplete" and last["response"]["status"] == "incomplete"


@pytest.mark.parametrize("reason", ["content_filter", "refusal"])
def test_a_text_completion_ends_with_the_filter(serving, reason):
    server = serving(Script(chunks=(Chunk("Well"), end(reason)), remote=True))
    asked = {"model": MODEL, "prompt": "hi"}
    body = server.client.post("/v1/completions", json=asked).json()
    assert body["choices"][0]["finish_reason"] == "content_filter"


# --- counts, and who answered -------------------------------------------------------------------------

PLAIN = (Chunk("Yes."), end("stop"))


def test_counts_come_from_the_provider_where_no_ids_are_known(serving):
    server = serving(Script(chunks=PLAIN, remote=True))
    usage = ask(server, "/v1/chat/completions").json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (100, 20, 120)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 40, "cache_write_tokens": 15}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 7}
    usage = ask(server, "/v1/responses").json()["usage"]
    assert usage["input_tokens"] == 100
    assert usage["input_tokens_details"] == {"cached_tokens": 40, "cache_write_tokens": 15}
    body = ask(server, "/api/chat").json()
    assert (body["prompt_eval_count"], body["eval_count"]) == (100, 20)


@pytest.mark.parametrize("stream", [False, True])
def test_anthropics_counts_tell_written_tokens_by_their_time(serving, stream):
    server = serving(Script(chunks=PLAIN, remote=True))
    if stream:
        (usage,) = [e["usage"] for e in lines(server, "/v1/messages") if e["type"] == "message_delta"]
    else:
        usage = ask(server, "/v1/messages").json()["usage"]
    assert usage == {
        "input_tokens": 45,
        "cache_creation_input_tokens": 15,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 5},
        "cache_read_input_tokens": 40,
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 7},
    }


@pytest.mark.parametrize("route", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_names_the_model_that_gave_it(serving, route, stream):
    server = serving(Script(chunks=PLAIN, remote=True, model="big", warnings=("seed was left out",)))
    answer = ask(server, route, stream=stream)
    assert answer.headers["x-freehold-model"] == "big"
    assert '"model":"big"' in answer.text and f'"model":"{MODEL}"' not in answer.text
    assert "seed was left out" in answer.text


def test_an_answer_of_the_model_that_was_asked_for_has_no_such_header(serving):
    assert "x-freehold-model" not in ask(serving(), "/v1/chat/completions").headers


def test_an_estimate_of_tokens_is_called_one(serving):
    asked = {"model": MODEL, "messages": CHAT}
    body = serving(Script(remote=True)).client.post("/v1/messages/count_tokens", json=asked).json()
    assert body["input_tokens"] == 1 and "estimated" in body["freehold"]["warnings"][0]
    assert serving().client.post("/v1/messages/count_tokens", json=asked).json()["freehold"]["warnings"] == []


def test_a_model_without_a_tokenizer_says_so(serving):
    client = serving(Script(remote=True)).client
    for asked in ({"prompt": "hi there"}, {"messages": [{"role": "user", "content": "hi there"}]}):
        body = client.post("/tokenize", json={"model": MODEL, **asked}).json()
        assert (body["count"], body["tokens"]) == (2, []) and "estimated" in body["freehold"]["warnings"][0]
    for route, asked in (
        ("/tokenize", {"prompt": "hi", "return_token_strs": True}),
        ("/detokenize", {"tokens": [1]}),
    ):
        answer = client.post(route, json={"model": MODEL, **asked})
        assert answer.status_code == 400 and "offers no tokenizer" in answer.json()["error"]["message"]


# --- fields of requests -------------------------------------------------------------------------------


def test_marks_of_the_cache_reach_the_job(serving):
    server = serving(Script(remote=True))
    hour = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    short = {"cache_control": {"type": "ephemeral"}}
    schema = {"input_schema": {"type": "object"}}
    asked = {
        "system": [{"type": "text", "text": "Be brief.", **hour}],
        "tools": [{"name": "a", **schema}, {"name": "b", **schema, **hour, "strict": True}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", **short}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    }
    ask(server, "/v1/messages", **asked)
    job = server.models.served[MODEL].jobs[-1]
    assert job.cache_tools == "1h" and [m.cache for m in job.messages] == ["1h", "5m", "", ""]
    assert [tool.strict for tool in job.tools] == [False, True]
    ask(server, "/v1/messages", **asked, **short)
    job = server.models.served[MODEL].jobs[-1]
    assert [m.cache for m in job.messages] == ["1h", "5m", "", "5m"]


def test_a_failed_tool_is_told_by_field_and_in_words(serving):
    server = serving(Script(remote=True))
    use = {"role": "assistant", "content": [BLOCKS[3]]}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": "no net", "is_error": True}
    ask(server, "/v1/messages", messages=[*CHAT, use, {"role": "user", "content": [result]}])
    message = server.models.served[MODEL].jobs[-1].messages[2]
    assert message.failed and message.content == "Error: no net"


@pytest.mark.parametrize("strict", [True, False])
def test_a_strict_tool_of_a_chat_is_strict_in_the_job(serving, strict):
    server = serving(Script(remote=True))
    tool = {"type": "function", "function": {"name": "look", "parameters": {}, "strict": strict}}
    ask(server, "/v1/chat/completions", tools=[tool])
    assert server.models.served[MODEL].jobs[-1].tools[0].strict is strict
