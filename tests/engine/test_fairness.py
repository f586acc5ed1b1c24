"""Whatever other clients ask, a client waits no longer than its share allows, and is not refused while it is free."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freehold.base.errors import Overloaded
from freehold.base.types import Priority, SamplingParams
from freehold.run.engine.encoder import QueuedText, TextQueue
from freehold.run.engine.engine import Admission
from freehold.run.engine.schedule.budget import LONGEST_S, SHARED_TOKENS, TILE, Prefill
from freehold.run.engine.schedule.shares import GRAMMAR_S, WHOLE_SHARE
from freehold.run.engine.sequence import Request, Sequence
from tests.engine.world import LONE_S, TOKEN_S, World

CHAT, ANSWER = 100, 20  # tokens of the victim's prompts and answers
# docs/design/scheduler.md states the bound: of n clients each waits FACTOR * n times as long as it does alone, and
# while the steps that were planned before it came end, STEPS of LONGEST_S.
FACTOR, STEPS = 3, 1


@dataclass(frozen=True)
class Ask:
    """What a hostile client asks at once: `n` answers, or embeddings, of one prompt each."""

    client: str
    n: int
    prompt: int
    answer: int
    grammar_s: float
    embed: bool
    priority: Priority

    def enter(self, world: World) -> None:
        parent: Sequence | None = None
        for _ in range(self.n):
            seq = world.add(
                self.prompt if parent is None else list(parent.request.prompt),
                self.answer,
                self.priority,
                self.client,
                parent,
                0.0 if self.embed else self.grammar_s,
                self.embed,
            )
            parent = parent or (None if self.embed else seq)


asks = st.builds(
    Ask,
    client=st.sampled_from(["a", "b", "c"]),
    n=st.sampled_from([1, 2, 16, 128]),
    prompt=st.sampled_from([1, 50, 500, 3000]),
    answer=st.sampled_from([1, 20, 400]),
    grammar_s=st.sampled_from([0.0, 0.0002, 0.004, 0.02]),
    embed=st.booleans(),
    priority=st.sampled_from(["interactive", "interactive", "batch"]),
)


def warm(blocks: int) -> World:
    world = World(blocks=blocks)
    for _ in range(4):
        world.add(200, answer=8)
    world.finish()
    return world


def chat_s(world: World) -> float:
    """Return the seconds of a chat of the victim's."""
    seq = world.add(CHAT, answer=ANSWER, tenant="victim")
    came = world.now
    while not seq.done:
        world.step()
        assert world.now - came < 60.0
    return world.now - came


ALONE_S = chat_s(warm(blocks=400))


@pytest.mark.parametrize("blocks", [2000, 200])
@settings(max_examples=20, deadline=None)
@given(
    first=st.lists(asks, min_size=1, max_size=5),
    later=st.lists(asks, max_size=3),
    head_start_s=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_no_client_waits_longer_than_its_share_times_the_bound(
    blocks: int, first: list[Ask], later: list[Ask], head_start_s: float
):
    world = warm(blocks)
    for ask in first:
        ask.enter(world)
    world.run(head_start_s)
    clients = 1 + len({ask.client for ask in (*first, *later)})
    for more in ([], later, []):
        for ask in more:
            ask.enter(world)
        assert chat_s(world) <= FACTOR * clients * ALONE_S + STEPS * LONGEST_S


# --- the queue ---------------------------------------------------------------------------------------


def request(client: str, n: int = 1, prompt: int = 10) -> Request:
    return Request((1,) * prompt, SamplingParams(), 0, 10, client=client, answers=n)


def entered(admission: Admission, asked: Request) -> bool:
    """Let a request's answers into the queue; False if they are refused."""
    first = Sequence(asked, list(asked.prompt))
    try:
        admission.enter(first)
    except Overloaded:
        return False
    for _ in range(asked.answers - 1):
        admission.enter(Sequence(asked, list(asked.prompt), first))
    return True


def test_answers_to_one_prompt_take_as_many_places_in_the_queue():
    admission = Admission(World().scheduler, 10, None)
    assert entered(admission, request("a", n=6))
    assert not entered(admission, request("a", n=5))
    assert entered(admission, request("a", n=4))


def test_full_queue_of_one_client_refuses_no_other():
    world = World()
    admission = Admission(world.scheduler, 512, 4000)
    while entered(admission, request("hostile", n=128, prompt=100)):
        pass
    assert entered(admission, request("victim"))
    for seq in admission.take():
        world.scheduler.add(seq)
    assert entered(admission, request("victim")) and not entered(admission, request("hostile"))


@given(
    st.lists(
        st.builds(
            request,
            client=st.sampled_from("abc"),
            n=st.sampled_from([1, 3, 16]),
            prompt=st.sampled_from([1, 30, 200]),
        ),
        max_size=60,
    )
)
def test_client_is_refused_only_where_its_part_of_the_queue_is_full(asked: list[Request]):
    admission = Admission(World().scheduler, 30, 600)
    places, tokens = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    for each in asked:
        client = each.client
        waiting = {c for c, count in places.items() if count} | {client}
        if entered(admission, each):
            places[client] += each.answers
            tokens[client] += len(each.prompt)
        else:
            part = 1 / len(waiting)
            over = places[client] + each.answers > 30 * part or tokens[client] + len(each.prompt) > 600 * part
            assert over and places[client]
    assert sum(places.values()) <= 30 * (1 + 1 / 2 + 1 / 3) + 16


# --- slots, steps and blocks -------------------------------------------------------------------------


def test_client_gets_a_slot_while_another_holds_all():
    world = World(max_num_batched_tokens=8)
    for _ in range(40):
        world.add(4, answer=400, tenant="hostile")
    world.run(1.0)
    chat = world.add(4, answer=4, tenant="victim")
    while not chat.generated:
        world.step()
    hostile = [seq for seq in world.scheduler.live if seq.request.client == "hostile"]
    assert len(hostile) == 40  # none of them had to end


def test_many_answers_of_one_client_slow_another_by_its_share():
    world = warm(400)
    alone = world.add(CHAT, answer=400, tenant="victim")
    world.run(1.0)
    for _ in range(64):
        world.add(20, answer=400, tenant="hostile")
    world.run(1.0)  # their prompts
    hostile = {seq: seq.generated for seq in world.scheduler.live if seq is not alone}
    made, began = alone.generated, world.now
    world.run(4.0)
    assert (world.now - began) / (alone.generated - made) <= 2.2 * LONE_S
    more = [seq.generated - before for seq, before in hostile.items()]
    assert len(more) == 64 and max(more) - min(more) <= 2  # they take turns


def test_one_slow_grammar_a_step_and_in_the_long_run_a_share():
    world = warm(400)
    for _ in range(16):
        world.add(20, answer=400, tenant="hostile", grammar_s=0.02)
    world.run(2.0)
    chat = world.add(CHAT, answer=100, tenant="victim")
    while not chat.done:
        slow = [chunk.seq for chunk in world.step() if chunk.seq.request.client == "hostile"]
        assert len(slow) <= 1 or not chat.generated
    gaps = world.logs[chat].gaps
    assert max(gaps) <= 2 * LONE_S + GRAMMAR_S + 0.02
    assert sum(gaps) / len(gaps) <= 2.2 * LONE_S
    assert all(seq.generated for seq in world.logs if seq.request.client == "hostile")


def crowd(clients: int = 20) -> World:
    """A world in which so many clients have a book to compute, many answers or texts to embed."""
    world = warm(4000)
    for i in range(clients):
        if i % 3 == 0:
            world.add(6000, answer=64, tenant=f"h{i}")
        for _ in range(64 if i % 3 else 0):
            world.add(4, answer=400, tenant=f"h{i}", embed=i % 3 == 2)
    world.run(3.0)
    return world


def test_step_of_a_crowd_is_no_longer_than_a_few_tokens_alone_after_a_short_chat():
    world = crowd()
    chat_s(world)
    for _ in range(100):
        began = world.now
        world.step()
        assert world.now - began <= SHARED_TOKENS * LONE_S * (1 + WHOLE_SHARE)


def test_client_that_asks_little_has_its_first_token_in_two_steps_of_a_crowd():
    world = crowd()
    chat_s(world)
    for _ in range(20):
        chat = world.add(42, answer=3, tenant="victim")
        steps = 0
        while not chat.generated:
            world.step()
            steps += 1
        assert steps <= 2
        while not chat.done:
            world.step()
        world.run(0.2)


def full_steps() -> World:
    """A world in which more clients have a running answer than a shared step has tokens."""
    world = warm(4000)
    for i in range(40):
        world.add(20, answer=4000, tenant=f"h{i}")
    world.run(3.0)
    return world


def test_prompts_of_others_have_a_part_of_a_step_that_answers_would_fill():
    world = full_steps()
    for i in range(10):
        world.add(4000, answer=4, tenant=f"book{i}")
    chat_s(world)
    for _ in range(40):  # more than a client that asks little may have before others had theirs
        world.add(42, answer=3, tenant="neighbour")
        chat = world.add(42, answer=3, tenant="victim")
        steps = 0
        while not chat.generated:
            world.step()
            steps += 1
        assert steps <= 2
        while not chat.done:
            world.step()


def test_brief_prompt_is_not_cut_where_it_begins_one_tile_more():
    """Steps of two tiles seemed dear, since the machine was busy while they were measured."""
    world = full_steps()
    chat_s(world)
    for _ in range(8):
        world.scheduler.budget.learn(4, [Prefill(0, TILE, logits=False)], 0, 0.5)
    chat = world.add(TILE - 2, answer=3, tenant="victim")
    chunks: list[int] = []
    while not chat.generated:
        chunks += [chunk.count for chunk in world.step() if chunk.seq is chat]
    assert chunks == [TILE - 2]


def test_last_token_of_a_prompt_waits_for_no_turn_among_answers(monkeypatch: pytest.MonkeyPatch):
    world = full_steps()
    chat_s(world)
    chat = world.add(40 + TILE + 1, answer=1, tenant="victim")
    with monkeypatch.context() as patch:
        patch.setattr(world.scheduler.budget, "tokens", lambda done, left, *_: min(left, 40))
        world.step()
    assert chat.num_computed_tokens == 40
    world.step()
    assert chat.done


def test_cached_beginning_of_a_prompt_leaves_it_brief():
    world = crowd()
    told = [5000 + i % 7 for i in range(2000)]
    chat = world.add(told, answer=1, tenant="victim")
    while not chat.done:
        world.step()
    world.run(1.0)
    chat = world.add([*told, *range(6000, 6020)], answer=1, tenant="victim")
    steps = 0
    while not chat.done:
        world.step()
        steps += 1
    assert steps <= 2


def test_clients_that_ask_little_again_and_again_leave_another_its_share():
    world = warm(4000)
    book = world.add(20_000, answer=4, tenant="book")
    chats = [world.add(40, answer=1, tenant=f"h{i}") for i in range(9)]
    before, until = book.num_computed_tokens, world.now + 20.0
    while world.now < until:
        world.step()
        for ended in [seq for seq in chats[-9:] if seq.done]:
            chats.remove(ended)
            chats.append(world.add(40, answer=1, tenant=ended.request.client))
    assert (book.num_computed_tokens - before) * TOKEN_S > 0.6 * 20.0 / 10


def test_choosing_tokens_counts_in_a_shared_step():
    world = warm(400)
    for _ in range(64):
        world.add(20, answer=400, tenant="hostile", choice_s=0.005)
    world.run(3.0)
    chat = world.add(CHAT, answer=100, tenant="victim")
    while not chat.done:
        world.step()
    gaps = world.logs[chat].gaps[1:]
    assert max(gaps) <= 2 * LONE_S + 2 * 0.005


def test_choosing_tokens_slows_no_client_alone():
    world = warm(400)
    seqs = [world.add(20, answer=400, choice_s=0.005) for _ in range(64)]
    world.run(10.0)
    step = [chunk.seq for chunk in world.step()]
    assert len(step) == len(seqs)


def test_answers_with_slow_grammars_alone_continue_before_any_step_was_measured():
    world = World()
    seqs = [world.add(4, answer=3, tenant=tenant, grammar_s=0.02) for tenant in "abab"]
    world.finish(steps=100)
    assert all(seq.done for seq in seqs)


def test_client_with_less_service_gets_blocks_of_another_that_holds_all():
    world = warm(40)
    for _ in range(8):
        world.add(100, answer=2000 // 8, tenant="hostile")
    world.run(2.0)
    assert world.blocks.available < 8
    assert chat_s(world) <= FACTOR * 2 * ALONE_S + STEPS * LONGEST_S
    world.finish()
    assert world.blocks.live == 0


# --- an encoder --------------------------------------------------------------------------------------


def test_texts_of_one_client_share_an_encoders_steps_with_those_of_another():
    texts = TextQueue()
    texts.extend("hostile", [QueuedText([1] * 100, "mean") for _ in range(64)])
    assert len(texts.take(800)) == 8
    mine = QueuedText([1] * 100, "mean")
    texts.extend("victim", [mine])
    assert mine in texts.take(800) and len(texts) == 64 - 8 - 7
