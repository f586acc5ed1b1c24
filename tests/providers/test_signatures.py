"""Signed blocks return to the model that made them, in the same conversation, and go nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from freehold.base.serving import Job
from freehold.base.types import Chunk, Message, SignedThinking, ToolCall, ToolPiece
from freehold.route.providers.contract import HOUSE, Cleared, Provider, RemoteModel, SetLabel
from freehold.route.providers.signatures import Signatures, carried

CLAUDE = RemoteModel(Provider("anthropic", "anthropic", "https://a.example/v1"), "claude-sonnet-4-5")
GEMINI = RemoteModel(Provider("gemini", "gemini", "https://g.example/v1beta"), "gemini-3-pro")
BLOCK = SignedThinking("I look it up.", "sig+/=", text_before=3)
HIDDEN = SignedThinking(redacted="blob==")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def request(*calls: str, tenant: str = "t", labels: tuple[str, ...] = (), signed=()) -> Cleared[Job]:
    asked = Message("assistant", "", tool_calls=tuple(ToolCall(c, "f", "{}") for c in calls), signed=signed)
    chat = Message("user", "hi"), asked, *(Message("tool", "1", tool_call_id=c) for c in calls)
    named = tuple(SetLabel(name, "header") for name in labels)
    return Cleared(Job(messages=chat, tenant=tenant), frozenset({HOUSE, "anthropic", "gemini"}), named)


def answer(store: Signatures, asked: Cleared[Job], remote: RemoteModel, *calls: str, signature: str = ""):
    """Pass an answer through a watch; return its chunks as a client has them."""
    watch = store.watch(asked, remote)
    pieces = tuple(ToolPiece(i, c, "f", "{}", signature) for i, c in enumerate(calls))
    chunks = Chunk(thinking="I look it up."), Chunk(signed=(BLOCK, HIDDEN)), Chunk(tool_calls=pieces)
    return [watch.seen(0, chunk) for chunk in (*chunks, Chunk(finish_reason="tool_calls"))]


def sent(store: Signatures, asked: Cleared[Job], remote: RemoteModel | None) -> Cleared[Job]:
    """A request as a wire sees it, or as an engine of ours does."""
    restored = store.restored(asked, remote)
    return restored if remote is None else restored.with_work(carried(restored.work, remote))


def blocks(cleared: Cleared[Job]) -> tuple[SignedThinking, ...]:
    assert cleared.work.messages is not None
    return tuple(block for message in cleared.work.messages for block in message.signed)


def call_signatures(cleared: Cleared[Job]) -> list[str]:
    assert cleared.work.messages is not None
    return [call.signature for message in cleared.work.messages for call in message.tool_calls]


def test_blocks_return_by_any_call_of_their_answer():
    store = Signatures()
    answer(store, request(), CLAUDE, "a", "b")
    assert blocks(sent(store, request("a", "b"), CLAUDE)) == (BLOCK, HIDDEN)
    assert blocks(sent(store, request("b"), CLAUDE)) == (BLOCK, HIDDEN)


def test_signature_of_a_call_returns_with_its_call():
    store = Signatures()
    answer(store, request(), GEMINI, "a", signature="S")
    assert call_signatures(sent(store, request("a", "z"), GEMINI)) == ["S", ""]


@pytest.mark.parametrize(
    "other",
    [
        (request("a"), GEMINI),
        (request("a"), replace(CLAUDE, model="claude-opus-4-5")),
        (request("a", tenant="u"), CLAUDE),
        (request("a", labels=("eu",)), CLAUDE),
        (request("z"), CLAUDE),
        (request("a"), None),
    ],
)
def test_blocks_go_to_no_other_model_tenant_or_label(other):
    store = Signatures()
    answer(store, request(), CLAUDE, "a", signature="S")
    asked, remote = other
    restored = sent(store, asked, remote)
    assert blocks(restored) == ()
    assert set(call_signatures(restored)) == {""}


def test_client_carries_blocks_without_the_memory():
    chunks = answer(Signatures(), request(), CLAUDE, "a")
    carried = tuple(block for chunk in chunks for block in chunk.signed)
    assert all("sig" not in block.signature[:8] for block in carried)
    back = request("a", signed=carried)
    assert blocks(sent(Signatures(), back, CLAUDE)) == (BLOCK, HIDDEN)
    assert blocks(sent(Signatures(), back, GEMINI)) == ()
    assert blocks(sent(Signatures(), back, None)) == ()


def test_client_carries_a_calls_signature_without_the_memory():
    chunks = answer(Signatures(), request(), GEMINI, "a", signature="S")
    (piece,) = [piece for chunk in chunks for piece in chunk.tool_calls]
    asked = request("a")
    assert asked.work.messages is not None
    user, said, result = asked.work.messages
    said = replace(said, tool_calls=(ToolCall("a", "f", "{}", piece.signature),))
    back = asked.with_work(replace(asked.work, messages=(user, said, result)))
    assert call_signatures(sent(Signatures(), back, GEMINI)) == ["S"]
    assert call_signatures(sent(Signatures(), back, CLAUDE)) == [""]


def test_signature_of_unknown_origin_is_left_out():
    back = request("a", signed=(SignedThinking("x", "sha256-1234"), SignedThinking(redacted="raw")))
    assert blocks(sent(Signatures(), back, CLAUDE)) == ()


def test_answer_that_broke_keeps_nothing():
    store = Signatures()
    watch = store.watch(request(), CLAUDE)
    watch.seen(0, Chunk(signed=(BLOCK,)))
    watch.seen(0, Chunk(tool_calls=(ToolPiece(0, "a", "f", "{}"),)))
    assert store.answers == 0
    assert blocks(sent(store, request("a"), CLAUDE)) == ()


def test_answers_of_one_request_keep_their_blocks_apart():
    store = Signatures()
    watch = store.watch(request(), CLAUDE)
    watch.seen(0, Chunk(signed=(BLOCK,), tool_calls=(ToolPiece(0, "a", "f", "{}"),)))
    watch.seen(1, Chunk(signed=(HIDDEN,), tool_calls=(ToolPiece(0, "b", "f", "{}"),)))
    for i in (1, 0):
        watch.seen(i, Chunk(finish_reason="tool_calls"))
    assert blocks(sent(store, request("a"), CLAUDE)) == (BLOCK,)
    assert blocks(sent(store, request("b"), CLAUDE)) == (HIDDEN,)


def test_store_is_bounded_in_number_bytes_and_time():
    clock = Clock()
    store = Signatures(answers=3, memory=100_000, seconds=10, clock=clock)
    for name in "abcd":
        answer(store, request(), CLAUDE, name, name + "2")
    assert store.answers == 3
    assert blocks(sent(store, request("a"), CLAUDE)) == ()
    assert blocks(sent(store, request("b"), CLAUDE)) == (BLOCK, HIDDEN)  # and now it is the newest
    answer(store, request(), CLAUDE, "e")
    assert blocks(sent(store, request("c"), CLAUDE)) == ()
    assert blocks(sent(store, request("b2"), CLAUDE)) == (BLOCK, HIDDEN)
    clock.now += 10.1
    assert blocks(sent(store, request("b"), CLAUDE)) == ()
    answer(store, request(), CLAUDE, "f")
    assert store.answers == 1
    big = [ToolCall("big", "f", "{}")], [SignedThinking("x" * 200_000, "s")]
    store.keep(("t", (), "anthropic", CLAUDE.model), *big)
    assert (store.answers, store.bytes) == (0, 0)


def test_watch_leaves_ordinary_chunks_as_they_are():
    chunk = Chunk(text="word")
    assert Signatures().watch(request(), CLAUDE).seen(0, chunk) is chunk


def test_places_and_labels_stay_with_the_restored_request():
    store = Signatures()
    asked = request("a", labels=("eu",))
    answer(store, asked, CLAUDE, "a")
    restored = sent(store, asked, CLAUDE)
    assert (restored.places, restored.labels) == (asked.places, asked.labels)
