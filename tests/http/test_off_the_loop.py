"""What long requests cost stays off the loop: it runs in the bodies' threads, in linear time, after its limits."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freehold.base.errors import UsageError
from freehold.base.serving import MAX_TEXTS, MAX_TOOLS, EmbedJob
from freehold.base.types import MAX_CHOICES
from freehold.serve.http import app
from freehold.serve.http.anthropic import messages as anthropic
from freehold.serve.http.batches.record import BatchLine
from freehold.serve.http.core import bodies, limits, longjson
from freehold.serve.http.core.answering import Answering
from freehold.serve.http.core.bodies import LOOP_BYTES, LoopTurns
from freehold.serve.http.core.call import APART, CALLER_THREADS
from freehold.serve.http.core.fields import Pictures
from freehold.serve.http.core.limits import ServerLimits
from freehold.serve.http.core.longjson import in_pieces, long_list
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.ollama import generating as ollama
from freehold.serve.http.ollama import models
from freehold.serve.http.ollama import models as ollama_models
from freehold.serve.http.ollama.fields import MAX_UNANSWERED, CallIds
from freehold.serve.http.openai import chat as openai
from freehold.serve.http.openai import completions, embeddings
from freehold.serve.http.openai import models as tokens
from freehold.serve.http.openai.fields import generating
from freehold.serve.http.openai.fields.chat import ChatMessage, ChatRequest
from freehold.serve.http.openai.responses.fields import LOGPROBS, read_items
from freehold.serve.http.openai.responses.output import Output
from freehold.serve.http.openai.responses.store import Keeping
from freehold.serve.worker import wire
from tests.http.fakes import Script
from tests.http.test_streams import eventually
from tests.vectors.files import write_gguf

MODEL = "fake:1b"
WORDS = "a" * (APART + 1)
MOST = ServerLimits()


def in_thread(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Have a function note the name of the thread that calls it."""
    seen: list[str] = []
    real = getattr(module, name)

    def noting(*args: Any, **more: Any) -> Any:
        seen.append(threading.current_thread().name)
        return real(*args, **more)

    monkeypatch.setattr(module, name, noting)
    return seen


READERS = [
    (openai, "chat_job", "/v1/chat/completions", {"messages": [{"role": "user", "content": WORDS}]}),
    (completions, "completion_jobs", "/v1/completions", {"prompt": WORDS}),
    (
        anthropic,
        "message_job",
        "/v1/messages",
        {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 2},
    ),
    (
        anthropic,
        "counted_job",
        "/v1/messages/count_tokens",
        {"messages": [{"role": "user", "content": WORDS}]},
    ),
    (ollama, "chat_job", "/api/chat", {"messages": [{"role": "user", "content": WORDS}], "stream": False}),
    (embeddings, "listed", "/v1/embeddings", {"input": [WORDS]}),
    (tokens, "unknown_message_fields", "/tokenize", {"messages": [{"role": "user", "content": WORDS}]}),
]


@pytest.mark.parametrize("module, name, path, body", READERS, ids=[path for _, _, path, _ in READERS])
def test_a_long_request_is_made_into_a_job_off_the_loop(serving, monkeypatch, module, name, path, body):
    seen = in_thread(monkeypatch, module, name)
    answer = serving().client.post(path, json={"model": MODEL, **body})
    assert answer.status_code in (200, 400), answer.text  # of some the scripted model has no room for it
    assert seen and all(each.startswith("freehold-bodies") for each in seen)


def test_a_failed_request_is_freed_without_the_garbage_collector(serving):
    text = "a body whose answer fails"
    chat = {"model": MODEL, "messages": [{"role": "user", "content": text}]}

    def kept() -> bool:
        found = (each for each in gc.get_objects() if isinstance(each, ChatRequest))
        return any(text in str(each.messages) for each in found)

    gc.collect()
    gc.disable()
    try:
        for failed_at in ("start", 1):
            running = serving(Script(fail=UsageError("no"), fail_at=failed_at))
            assert running.client.post("/v1/chat/completions", json=chat).status_code == 400
            assert running.client.post("/v1/chat/completions", json={**chat, "stream": True}).text
        assert eventually(lambda: not kept())
    finally:
        gc.enable()


def test_a_long_request_is_freed_off_the_loop(serving, monkeypatch):
    """It took up to 10 ms when its answer ended, on the loop."""
    freed: list[tuple[str, list[str]]] = []
    real = bodies.dissolve

    def noting(values: list[Any]) -> None:
        freed.append((threading.current_thread().name, [type(each).__name__ for each in values]))
        real(values)

    monkeypatch.setattr(bodies, "dissolve", noting)
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "a" * 40}] * 4000}
    assert serving().client.post("/v1/chat/completions", json=asked).status_code == 200
    assert eventually(lambda: bool(freed))
    (name, kinds), *more = freed
    assert name.startswith("freehold-bodies-long") and kinds == ["ChatRequest", "dict", "Job"] and not more


def test_values_are_freed_from_above_and_what_others_hold_is_left():
    kept = [{"a": [1, 2]}]
    order: list[str] = []

    class Named(msgspec.Struct, weakref=True):
        name: str
        inner: list[Any] = []

    outer, inner = Named("outer", [*range(10_000)]), Named("inner")
    for each in (outer, inner):
        weakref.finalize(each, order.append, each.name)
    outer.inner.append(inner)
    values = [{"x": [outer, kept]}]
    del outer, inner, each
    bodies.dissolve(values)
    assert order == ["outer", "inner"] and not values and kept == [{"a": [1, 2]}]


def test_a_body_beyond_some_kilobytes_is_parsed_off_the_loop(serving, monkeypatch):
    seen = in_thread(monkeypatch, bodies, "parse")
    client = serving().client
    for length in (10, LOOP_BYTES, bodies.SHORT_BYTES):
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "ignored": "x" * length}
        assert client.post("/v1/chat/completions", json=chat).status_code == 200
    loop, short, long = seen
    assert not loop.startswith("freehold-bodies")
    assert short.startswith("freehold-bodies-short") and long.startswith("freehold-bodies-long")


def test_vectors_are_written_off_the_loop_and_one_at_a_time(serving, monkeypatch):
    seen = in_thread(monkeypatch, embeddings, "as_numbers")
    answer = serving().client.post("/v1/embeddings", json={"model": MODEL, "input": ["a b"] * 2000})
    assert len(answer.json()["data"]) == 2000
    assert [each.startswith("freehold-bodies") for each in seen] == [True]


def test_log_probabilities_of_a_whole_answer_are_written_off_the_loop(serving, monkeypatch):
    seen = in_thread(monkeypatch, Answering, "_encoded")
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "logprobs": True}
    running = serving(Script(text="word " * 200))
    answer = running.client.post("/v1/chat/completions", json={**chat, "top_logprobs": 20}).json()
    assert len(answer["choices"][0]["logprobs"]["content"]) > 100
    assert [each.startswith("freehold-bodies") for each in seen] == [True]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_response_are_written_and_prepared_for_its_store_off_the_loop(
    serving, monkeypatch, stream: bool
):
    written, prepared = in_thread(monkeypatch, Output, "finish"), in_thread(monkeypatch, Keeping, "prepare")
    put = in_thread(monkeypatch, Keeping, "put")
    asked = {"model": MODEL, "input": "hi", "include": [LOGPROBS], "top_logprobs": 20, "stream": stream}
    running = serving(Script(text="word " * 200))
    answer = running.client.post("/v1/responses", json=asked)
    lines = answer.text.splitlines()
    whole = json.loads(lines[-2].removeprefix("data: "))["response"] if stream else answer.json()
    assert len(whole["output"][0]["content"][0]["logprobs"]) > 100
    assert [each.startswith("freehold-bodies") for each in written + prepared + put] == [True, True, False]
    assert running.client.get(f"/v1/responses/{whole['id']}").json()["output"] == whole["output"]


def test_long_lists_anywhere_are_written_in_pieces_as_the_encoder_writes_them():
    value = {"a": [{"b": list(range(300)), "c": "x"}], "d": [], "e": [[i] for i in range(200)]}
    assert isinstance(in_pieces(value)["e"], msgspec.Raw)
    assert msgspec.json.encode(in_pieces(value)) == msgspec.json.encode(value)


def test_a_line_of_a_batch_is_encoded_in_a_thread_and_its_answer_is_never_parsed():
    line = msgspec.json.decode(
        b'{"custom_id": "1", "method": "POST", "url": "/x", "body": {"a": [1, 2], "priority": "interactive"}}',
        type=BatchLine,
    )
    body, streams = line.request()
    assert json.loads(body) == {"a": [1, 2], "priority": "batch"} and not streams
    empty = msgspec.json.decode(
        b'{"custom_id": "1", "method": "POST", "url": "/x", "body": {}}', type=BatchLine
    )
    assert json.loads(empty.request()[0]) == {"priority": "batch"}


def test_a_client_that_left_has_its_body_dropped_unparsed(monkeypatch):
    parsed = in_thread(monkeypatch, bodies, "parse")
    with pytest.raises(limits.Gone):
        bodies._joined([b"{}"], lambda: True)
    assert bodies._joined([b"{", b"}"], lambda: False) == b"{}" and not parsed


# --- linear -------------------------------------------------------------------------------------------


class _Counted(dict[int, tuple[str, str]]):
    """Counts how often an entry is looked for."""

    looked = 0

    def __contains__(self, key: object) -> bool:
        _Counted.looked += 1
        return super().__contains__(key)


def test_results_of_ollamas_calls_are_found_in_linear_time():
    ids = CallIds()
    ids._open = _Counted()
    for i in range(MAX_UNANSWERED):
        ids.called(f"tool{i % 3}", None)
    _Counted.looked = 0
    for _ in range(9_000):
        assert ids.answered("another", None) == ("", "another")
    for i in range(MAX_UNANSWERED):
        id, name = ids.answered(f"tool{i % 3}", None)
        assert id == f"call_{i + 1}" and name == f"tool{i % 3}"
    assert _Counted.looked == MAX_UNANSWERED  # each call once, and results that answer none not at all


def test_calls_of_a_turn_of_a_response_are_counted_before_they_are_joined():
    calls = [
        {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"}
        for i in range(MAX_TOOLS + 1)
    ]
    outs = [{"type": "function_call_output", "call_id": f"c{i}", "output": "x"} for i in range(MAX_TOOLS)]
    read = read_items([*calls[:-1], *outs], None, 0, [], Pictures())
    assert len(read[0].tool_calls) == MAX_TOOLS and len(read) == 1 + MAX_TOOLS
    with pytest.raises(Refused, match=f"call {MAX_TOOLS + 1} of a turn; expected at most {MAX_TOOLS}"):
        read_items(calls, None, 0, [], Pictures())


# --- limits first -------------------------------------------------------------------------------------


def test_too_many_choices_are_refused_before_they_are_encoded(serving, monkeypatch):
    encoded = in_thread(monkeypatch, generating, "bounded")
    body = {"model": MODEL, "prompt": "a", "guided_choice": ["a"] * (MAX_CHOICES + 1)}
    answer = serving().client.post("/v1/completions", json=body)
    assert answer.status_code == 400 and f"{MAX_CHOICES}" in answer.text and not encoded


def test_too_many_texts_are_refused_before_they_are_looked_at():
    class Untouched(list[str]):
        def __iter__(self) -> Any:
            raise AssertionError("its texts were looked at")

    with pytest.raises(Refused, match=f"expected 1 to {MAX_TEXTS:,}"):
        embeddings.listed(Untouched(["a"] * (MAX_TEXTS + 1)))


def test_nearest_names_are_looked_for_as_often_as_there_are_warnings(serving, monkeypatch):
    from freehold.serve.http.core import fields

    looked = in_thread(monkeypatch, fields, "nearest")
    strange = {f"strange{i}": 1 for i in range(limits.MAX_UNKNOWN)}
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **strange}
    assert serving().client.post("/v1/chat/completions", json=chat).status_code == 200
    assert len(looked) == fields.MAX_WARNINGS


@pytest.mark.parametrize(
    "value, what",
    [
        (b"[" + b",".join([b'"a"'] * (MOST.body_values + 10)) + b"]", "values beside lists of numbers"),
        (b"[[" + b",".join([b"1"] * (MOST.body_values + 10)) + b"]]", "values beside lists of numbers"),
        (
            b"{" + b",".join(b'"%d": 1' % i for i in range(17_000)) + b"}",
            "names beside 8 for each list and object",
        ),
        (b'"' + b"\\n" * (MOST.body_escapes + 1) + b'"', "backslashes"),
    ],
)
def test_what_takes_the_parser_long_is_refused_before_it_is_parsed(value, what):
    with pytest.raises(Refused, match=what):
        bodies.weigh(b'{"a": ' + value + b"}", MOST)


def test_token_ids_are_parsed_in_pieces_and_are_the_same(monkeypatch):
    ids = [i * 7 % 150_000 for i in range(1 << 19)]
    body = msgspec.json.encode({"prompt": ids, "model": "m,[x", "floats": [0.5] * 100_000})
    calls: list[int] = []
    real = msgspec.json.decode

    def decode(text: bytes, **more: Any) -> Any:
        calls.append(len(text))
        return real(text, **more)

    assert bodies.weigh(body, MOST) > len(body)
    monkeypatch.setattr(longjson.msgspec.json, "decode", decode)
    assert longjson.decoded(body) == {"prompt": ids, "model": "m,[x", "floats": [0.5] * 100_000}
    assert len(calls) > 50 and max(calls) < 2 * longjson.PIECE_BYTES


@pytest.mark.parametrize(
    "part", ["\u0436", "\u8a9e", "\U0001f600", 'a\u00e9\\"\n\u8a9e, [{', "plain " * 20 + "\U0001f600\\"]
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_long_text_beyond_ascii_is_parsed_in_pieces_and_is_the_same(monkeypatch, part, in_parts):
    """One call for 16 MB held the interpreter for 26 ms."""
    text = part * (longjson.LONG // len(part) * 3)
    content = [{"type": "text", "text": text}] if in_parts else text
    value = {"messages": [{"role": "user", "content": content}], "model": "m"}
    body = msgspec.json.encode(value)
    calls: list[int] = []
    real = msgspec.json.decode
    monkeypatch.setattr(
        longjson.msgspec.json, "decode", lambda text: (calls.append(len(text)), real(text))[1]
    )
    assert longjson.decoded(body) == value
    assert len(calls) > 10 and max(calls) < 2 * longjson.PIECE_BYTES


def test_a_text_of_halves_of_characters_is_cut_between_them():
    """Two escapes are one character here."""
    body = b'{"a": "' + b"\\ud83d\\ude00" * longjson.LONG + "\u0436".encode() * longjson.LONG + b'"}'
    assert longjson.decoded(body) == {"a": "\U0001f600" * longjson.LONG + "\u0436" * longjson.LONG}


BLOCKS = [{"type": "text", "text": "[a, {b"}] * 500
TURNS = [{"role": "user", "content": BLOCKS}] * 60


def test_long_lists_of_objects_are_parsed_in_pieces_and_are_the_same(monkeypatch):
    """One call for 60,000 parts of messages held the interpreter for 20 ms."""
    value = {"messages": TURNS, "model": "m", "long": ["x" * longjson.LONG, *BLOCKS], "deep": [[TURNS]]}
    body = msgspec.json.encode(value)
    calls: list[int] = []
    real = msgspec.json.decode
    monkeypatch.setattr(
        longjson.msgspec.json, "decode", lambda text: (calls.append(len(text)), real(text))[1]
    )
    assert longjson.decoded(body) == value
    assert len(calls) > 20 and max(calls) < 2 * longjson.PIECE_BYTES


@pytest.mark.heavy
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=30,
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.integers(0, 200),
    st.binary(max_size=2),
)
def test_any_body_in_pieces_is_the_same_and_so_is_its_error(value, indent, escaped, at, junk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longjson, "LONG", 20)
        patch.setattr(longjson, "PIECE_BYTES", 10)
        text = json.dumps(value, indent=indent, ensure_ascii=escaped).encode()
        for body in (text, text[:at] + junk + text[at + 1 :]):
            assert outcome(longjson.decoded, body) == outcome(msgspec.json.decode, body)
        patch.setattr(longjson, "PLACED", 0)  # as a long body, whose error is not looked for again
        for body in (text, text[:at] + junk + text[at + 1 :]):
            parsed, whole = (outcome(decode, body) for decode in (longjson.decoded, msgspec.json.decode))
            assert parsed == whole or ("DecodeError" in parsed and "DecodeError" in whole)


@pytest.mark.parametrize("end", [b"", b"}", b"]}", b'",}', b'" "b"}', b'"}x', b'": 1}', b'\\"}'])
@pytest.mark.parametrize("text", [b"word ", b"\\n", "\u0436".encode()])
def test_a_long_body_with_a_wrong_end_is_not_parsed_a_second_time(monkeypatch, text, end):
    """The search for its error would hold the interpreter as long as a whole body does."""
    body = b'{"a": "' + text * (longjson.PLACED // len(text)) + end
    calls: list[int] = []
    real = msgspec.json.decode
    monkeypatch.setattr(
        longjson.msgspec.json, "decode", lambda text: (calls.append(len(text)), real(text))[1]
    )
    with pytest.raises(Refused, match="not JSON"):
        limits.parse(body)
    assert max(calls, default=0) <= longjson.LONG


def outcome(decode: Any, body: bytes) -> str:
    try:
        return repr(decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        return f"DecodeError: {e}"


def test_long_lists_become_structs_an_item_at_a_time_with_the_same_errors(monkeypatch):
    raw = {"model": "m", "messages": [{"role": "user", "content": f"{i}"} for i in range(1000)]}
    whole = msgspec.convert(raw, ChatRequest)
    kinds: list[Any] = []
    real = msgspec.convert

    def convert(value: Any, kind: Any) -> Any:
        kinds.append(kind)
        return real(value, kind)

    monkeypatch.setattr(limits.msgspec, "convert", convert)
    assert limits.typed(raw, ChatRequest) == whole
    assert kinds == [ChatMessage] * 1000 + [ChatRequest]
    raw["messages"][700] = {"role": 7}
    with pytest.raises(Refused, match=r"messages\[700\]\.role is 7"):
        limits.typed(raw, ChatRequest)


@pytest.mark.parametrize("end", [b",]", b",,1]", b" 1 2]", b"]]"])
def test_a_list_of_numbers_that_is_not_json_is_refused(end):
    body = b'{"a": [' + b"1," * longjson.LONG + b"1" + end + b"}"
    with pytest.raises(Refused, match="not JSON"):
        limits.parse(body)


def test_a_long_list_is_written_as_the_encoder_writes_it():
    for values in ([], [1], list(range(10_000)), [0.5, None, "a\n", {"b": [1]}] * 3000):
        assert bytes(long_list(values)) == msgspec.json.encode(values)


# --- what is made once, or elsewhere ------------------------------------------------------------------


def test_the_openapi_document_is_made_once(serving, monkeypatch):
    client = serving().client
    first = client.get("/openapi.json").content
    made = in_thread(monkeypatch, app, "document")
    assert client.get("/openapi.json").content == first and not made


def test_lists_and_show_do_not_wait_for_a_template_that_does_not_end(serving, monkeypatch, tmp_path):
    go_on, begun = threading.Event(), list[str]()

    def endless(source: str) -> dict[str, bool]:
        begun.append(threading.current_thread().name)
        assert go_on.wait(60)
        return {"tools": True, "thinking": False}

    template = f"{{# {tmp_path} #}}{{{{ messages[0].content }}}}"  # that no test before met
    server = serving(home=tmp_path / "own")
    keys = {"tokenizer.chat_template": template}
    server.store.pull(str(write_gguf("llama", tmp_path / "tiny.gguf", dtype="Q8_0", keys=keys)))
    monkeypatch.setattr(ollama_models, "CHECK_S", 0.05)
    monkeypatch.setattr(models, "_read_abilities", endless)
    said = "tiny is being checked"
    try:
        show = server.client.post("/api/show", json={"model": "tiny"}).json()
        assert said in show["freehold"]["warnings"][0] and show["capabilities"] == ["completion"]
        tags = asyncio.run_coroutine_threadsafe(ollama_models._cards_of(server.store), server.loop).result(60)
        assert not tags["tiny"][0].is_whole
        assert begun == [
            "freehold-templates_0"
        ]  # of the two one asked for it, in a thread that no other work needs
        monkeypatch.setattr(ollama_models, "CHECK_S", 600.0)  # a second listing waits no further time
        asyncio.run_coroutine_threadsafe(ollama_models._cards_of(server.store), server.loop).result(60)
    finally:
        go_on.set()
    eventually(
        lambda: "tools" in server.client.post("/api/show", json={"model": "tiny"}).json()["capabilities"]
    )
    assert len(begun) == 1


def test_a_server_that_ends_waits_for_no_template_that_was_not_begun(serving, monkeypatch, tmp_path):
    go_on, begun = threading.Event(), list[str]()

    def endless(source: str) -> dict[str, bool]:
        begun.append(source)
        assert go_on.wait(60)
        return {"tools": False, "thinking": False}

    server = serving(home=tmp_path / "own")
    for name in ("one", "two", "three"):
        template = f"{{# {tmp_path} {name} #}}{{{{ messages[0].content }}}}"
        keys = {"tokenizer.chat_template": template}
        server.store.pull(str(write_gguf("llama", tmp_path / f"{name}.gguf", dtype="Q8_0", keys=keys)))
    monkeypatch.setattr(ollama_models, "CHECK_S", 0.05)
    monkeypatch.setattr(models, "_read_abilities", endless)
    try:
        asyncio.run_coroutine_threadsafe(ollama_models._cards_of(server.store), server.loop).result(60)
        assert len(ollama_models._checking) == 3
        server.stop()
        eventually(lambda: len(ollama_models._checking) == 1)
    finally:
        go_on.set()
    eventually(lambda: not ollama_models._checking)
    assert len(begun) == 1


def test_work_that_comes_at_once_is_spread_over_turns_of_the_loop_in_order():
    """A hundred requests at once kept /health waiting for 50 to 100 ms."""

    async def main() -> None:
        turns, loop, turn = LoopTurns(4, seconds=0.0), asyncio.get_running_loop(), 0
        ran: list[tuple[int, int]] = []

        def count() -> None:
            nonlocal turn
            turn += 1
            loop.call_soon(count)

        async def work(number: int) -> None:
            await turns.mine()
            ran.append((turn, number))

        loop.call_soon(count)
        tasks = [asyncio.create_task(work(i)) for i in range(100)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks[50:60]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [number for _, number in ran] == [i for i in range(100) if not 50 <= i < 60]
        assert max(Counter(turn for turn, _ in ran).values()) <= 4 and ran[-1][0] >= 22
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        before = len(ran)
        turns = LoopTurns(seconds=10.0)  # work that is done in time waits for nothing
        await asyncio.gather(*(work(i) for i in range(30)))
        assert len({turn for turn, _ in ran[before:]}) == 1

    asyncio.run(main())


def test_a_caller_has_a_few_names_looked_up_at_a_time(serving, monkeypatch):
    """64 requests for unknown names kept six threads at the disk, and /health waiting for 60 ms."""
    server, release, inside = serving(), threading.Event(), []

    async def slow(models: Any) -> list[Any]:
        inside.append(models)
        assert await asyncio.to_thread(release.wait, 60)
        return []

    monkeypatch.setattr(type(server.doors.server.models), "names", slow)
    with ThreadPoolExecutor(20) as pool, httpx2.Client(base_url=server.url, timeout=60) as client:
        sent = [pool.submit(client.get, f"/v1/models/m{n}") for n in range(20)]
        try:
            assert eventually(
                lambda: sum(server.doors.server.requests.values()) == 20 and len(inside) == CALLER_THREADS
            )
        finally:
            release.set()
        assert {each.result().status_code for each in sent} == {404}


def test_long_texts_are_packed_for_an_engine_off_the_loop_and_are_the_same(monkeypatch):
    packing = in_thread(monkeypatch, wire, "_with_texts")
    for text in ("word ", "\n", "\u0436\U0001f600"):
        for job in (EmbedJob((text,)), EmbedJob(("a", text * 200_000, (1, 2), text * 100_000))):
            assert bytes(asyncio.run(wire.packed(job))) == msgspec.msgpack.encode(job)
    loop = threading.current_thread().name
    assert [each == loop for each in packing] == [True, False] * 3


def test_requests_take_turns_of_the_loop_and_probes_none(serving, monkeypatch):
    taken: list[None] = []
    real = LoopTurns.free

    def free(turns: LoopTurns, *, ending: bool = False) -> bool:
        taken.append(None)
        return real(turns, ending=ending)

    server = serving()
    monkeypatch.setattr(LoopTurns, "free", free)
    for path in ("/health", "/ready"):
        server.client.get(path)
    assert not taken
    server.client.get("/v1/models")
    assert len(taken) == 1
