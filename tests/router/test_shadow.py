"""Shadows and kept answers: never for what a label keeps in, never in the way, each with its row."""

from __future__ import annotations

import asyncio
from pathlib import Path

from freehold.base.serving import Begin, Job
from freehold.base.types import Chunk, SamplingParams, Usage
from freehold.route.providers.contract import Cleared, SetLabel
from freehold.route.router import parts as shadows
from freehold.route.router.answers import AnswerCache, answer_key
from tests.router.house import gateway_of, job, within
from tests.router.rented import Answers, FakeRented, fault

SHADOW = '[routes.chat]\ntargets = ["own"]\nshadow = { target = "big", share = 1.0 }\n'
KEPT = '[routes.chat]\ntargets = ["big"]\ncache = "60s"\n'
BUDGET = '[keys.alice]\nbudget = { usd = 0.001, per = "day" }\n'


def run(test, folder: Path, text: str, **parts) -> None:
    async def main() -> None:
        async with within(folder, text, **parts) as house:
            await test(house)

    asyncio.run(main())


def test_shadow_is_asked_after_the_answer_and_has_a_row_that_no_budget_pays(tmp_path):
    async def test(house):
        assert await house.text("chat", key="alice") == "Hello there, world."
        await house.models.parts.background.settled()
        answer, shadow = sorted(house.rows, key=lambda row: row.outcome, reverse=True)
        assert (shadow.outcome, shadow.parent, shadow.target) == ("shadow", answer.id, "big")
        assert shadow.key == "" and shadow.nano == 300_000 and shadow.left_house
        assert answer.nano == 0 and not answer.left_house
        (asked,) = house.rented.asked
        assert asked[1].work.priority == "batch"

    run(test, tmp_path, SHADOW + BUDGET)


def test_request_with_any_label_has_no_shadow(tmp_path):
    async def test(house):
        await house.text("chat", labels=("free",))
        await house.models.parts.background.settled()
        assert not house.rented.asked and len(house.rows) == 1

    run(test, tmp_path, SHADOW + '[labels.free]\nstay = ["far", "box"]\n')


def test_answer_does_not_wait_for_its_shadow(tmp_path):
    async def test(house):
        await asyncio.wait_for(house.text("chat"), 5)
        assert house.models.parts.shadows.running == 1
        await house.models.close(0)
        assert house.models.parts.shadows.running == 0
        assert [row.outcome for row in house.rows] == ["whole", "shadow"]

    run(test, tmp_path, SHADOW, rented=FakeRented(big=Answers(silent_at=1)))


def test_shadow_that_fails_is_told_to_nobody_and_booked(tmp_path):
    async def test(house):
        assert await house.text("chat") == "Hello there, world."
        await house.models.parts.background.settled()
        assert house.rows[-1].attempts[0].cause == "server"

    run(test, tmp_path, SHADOW, rented=FakeRented(big=Answers(faults=[fault("server")])))


def test_so_many_shadows_at_once_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(shadows, "AT_ONCE", 2)

    async def test(house):
        for _ in range(5):
            await house.text("chat")
        await asyncio.sleep(0.01)
        assert len(house.rented.asked) == 2
        await house.models.close(0)

    run(test, tmp_path, SHADOW, rented=FakeRented(big=Answers(silent_at=1)))


def test_answer_that_did_not_end_has_no_shadow(tmp_path):
    async def test(house):
        stream = await house.start("chat")
        await anext(stream)
        await stream.aclose()
        await house.models.parts.background.settled()
        assert not house.rented.asked

    run(test, tmp_path, SHADOW)


def test_equal_request_of_the_same_key_is_answered_from_memory_at_no_cost(tmp_path):
    async def test(house):
        first = await house.ask("chat", key="alice")
        again = await house.ask("chat", key="alice")
        assert "".join(c.text for c in first) == "".join(c.text for c in again)
        assert again[-1].finish_reason == "stop" and again[-1].usage == first[-1].usage
        assert len(house.rented.asked) == 1
        kept = house.rows[-1]
        assert (kept.outcome, kept.nano, kept.target, kept.attempts) == ("cached", 0, "big", ())
        assert not kept.left_house

    run(test, tmp_path, KEPT)


def test_kept_answer_is_of_one_key_one_set_of_labels_and_one_route(tmp_path):
    text = KEPT + '[routes.other]\ntargets = ["big"]\ncache = "60s"\n[labels.free]\nstay = ["far"]\n'

    async def test(house):
        await house.text("chat", key="alice")
        await house.text("chat", key="bob")
        await house.text("other", key="alice")
        await house.text("chat", key="alice", labels=("free",))
        await house.text("chat", job("another question"), key="alice")
        await house.text("chat", job(sampling={"temperature": 0.1}), key="alice")
        assert len(house.rented.asked) == 6

    run(test, tmp_path, text)


def test_reload_forgets_kept_answers(tmp_path):
    async def test(house):
        await house.text("chat")
        house.reload(KEPT + "# changed\n")
        await house.text("chat")
        assert len(house.rented.asked) == 2

    run(test, tmp_path, KEPT)


def test_broken_or_left_answer_is_not_kept(tmp_path):
    async def test(house):
        stream = await house.start("chat")
        await anext(stream)
        await stream.aclose()
        assert await house.text("chat") == "one two "
        assert len(house.rented.asked) == 2

    run(test, tmp_path, KEPT, rented=FakeRented(big=Answers("one two")))


def test_kept_answers_have_a_bound_in_bytes_and_an_end():
    now = [0.0]
    cache = AnswerCache(memory=40_000, clock=lambda: now[0])
    target = gateway_of("").models["big"]
    begin = Begin(0, (), SamplingParams(), 0)
    end = (0, Chunk(finish_reason="stop", usage=Usage(1, 1)))
    for i in range(100):
        cache.keep(b"%d" % i, target, begin, [(0, Chunk("x" * 1000)), end], 60.0)
    assert cache.bytes <= 40_000 and cache.find(b"0") is None and cache.find(b"99") is not None
    cache.keep(b"large", target, begin, [(0, Chunk("x" * 9000)), end], 60.0)
    assert cache.find(b"large") is None
    now[0] = 61.0
    assert cache.find(b"99") is None


def test_key_of_an_answer_covers_tenant_labels_and_every_field_of_the_job():
    def key(asked: Job, tenant: str = "a", *labels: str) -> bytes:
        cleared = Cleared(asked, frozenset(), tuple(SetLabel(name, "header") for name in labels))
        return answer_key(cleared, tenant, "chat", "file")

    same = key(job("x"))
    assert key(job("x", timeout_s=3.0)) == same  # how long a client waits changes no answer
    others = [key(job("y")), key(job("x"), "b"), key(job("x"), "a", "p"), key(job("x", max_tokens=1))]
    others += [key(job("x", logprobs=1)), key(job("x", n=2)), key(job("x", stop=("a",)))]
    assert len({same, *others}) == len(others) + 1
