"""Prompts with one beginning meet one cache; no replica is given more than its share and a quarter."""

from __future__ import annotations

import random
from collections import Counter

from freehold.base.serving import Job
from freehold.base.types import Message, Tool
from freehold.outgrow.replicas.affinity import BOUND, PrefixRing, pick, prefix_key

RULES = Message("system", "You answer briefly. " * 100)


def talk(*said: str, **more) -> Job:
    turns = [Message("user" if i % 2 == 0 else "assistant", each) for i, each in enumerate(said)]
    return Job(messages=(RULES, *turns), **more)


def never(_: int) -> float:
    return 0


def test_turns_of_one_chat_have_one_key_and_chats_with_the_same_instructions_have_their_own() -> None:
    first = prefix_key(talk("What is a monad?"))
    assert first == prefix_key(talk("What is a monad?", "A burrito.", "Really?"))
    others = {prefix_key(talk(f"What is {i}?")) for i in range(100)}
    assert len(others | {first}) == 101


def test_tenants_share_no_key_for_they_share_no_cache() -> None:
    assert prefix_key(talk("hi", tenant="a")) != prefix_key(talk("hi", tenant="b"))
    assert prefix_key(talk("hi")) != prefix_key(talk("hi", tools=(Tool("add"),)))


def test_short_prompt_has_no_key_in_any_form() -> None:
    assert prefix_key(Job(messages=(Message("user", "hi"),))) is None
    assert prefix_key(Job(prompt="hi")) is None
    assert prefix_key(Job(prompt=(1, 2, 3))) is None
    assert prefix_key(Job(prompt="x" * 1000)) == prefix_key(Job(prompt="x" * 1000))
    assert prefix_key(Job(prompt=tuple(range(600)))) == prefix_key(Job(prompt=(*range(512), 0)))


def test_keys_spread_over_replicas() -> None:
    ring, draw = PrefixRing(range(4)), random.Random(0)
    firsts = Counter(next(ring.order(draw.getrandbits(64))) for _ in range(20_000))
    assert all(0.6 < count / 5_000 < 1.5 for count in firsts.values())


def test_replica_that_leaves_moves_its_own_keys_only() -> None:
    draw = random.Random(1)
    keys = [draw.getrandbits(64) for _ in range(2_000)]
    before, after = PrefixRing(range(5)), PrefixRing([0, 1, 3, 4])
    for key in keys:
        was = next(before.order(key))
        assert was == 2 or next(after.order(key)) == was


def test_load_is_bounded_when_all_ask_for_one_beginning() -> None:
    ring, loads = PrefixRing(range(4)), dict.fromkeys(range(4), 0)
    for total in range(1, 401):
        number = pick(ring, 42, loads, never)
        assert number is not None
        loads[number] += 1
        assert loads[number] <= BOUND * total / 4 + 1
    assert min(loads.values()) > 0


def test_without_a_key_the_least_loaded_answers_and_of_these_the_longest_idle() -> None:
    ring = PrefixRing(range(3))
    assert pick(ring, None, {0: 2, 1: 1, 2: 5}, never) == 1
    assert pick(ring, None, {0: 1, 1: 1, 2: 1}, {0: 5, 1: 3, 2: 4}.__getitem__) == 1
    assert pick(ring, None, {}, never) is None


def test_replica_that_is_not_ready_is_passed_over_and_its_keys_come_back_to_it() -> None:
    ring = PrefixRing(range(3))
    home = pick(ring, 7, dict.fromkeys(range(3), 0), never)
    away = pick(ring, 7, {n: 0 for n in range(3) if n != home}, never)
    assert away not in (home, None)
    assert pick(ring, 7, dict.fromkeys(range(3), 0), never) == home
