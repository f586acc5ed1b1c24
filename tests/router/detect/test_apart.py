"""Long texts are read in another process, in turns of their keys; what is not read to its end has the labels."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from typing import Any

import phonenumbers
import pytest

from freehold.base.prompts import prompt_size
from freehold.base.sandbox import children
from freehold.base.serving import EmbedJob, Job, Origin
from freehold.base.types import Image, Message, ToolCall
from freehold.route.providers.texts import parts_of
from freehold.route.router.detect import MOST_HITS, Sieve
from freehold.route.router.detect.apart import KeyTurns, LongTexts, NotRead, Sought
from freehold.route.router.detect.detectors import _ANY, TooManyHits, _possible
from freehold.route.router.gateway import Gateway, Label
from freehold.route.router.labels import HITS_IN_LOOP, IN_LOOP, Labeller, sieve_of

PII = Sought((), ("pii",))
PRIVATE = Label("private", detect=("pii",))
PHONES = "phone 000-0000 "
HOSTILE = {
    "phones": PHONES * 32_000,
    "phones, few": PHONES * 400,
    "mails": "a@b.zz " * 100_000,
    "escapes": r"\n\u0041" * 5000,
    "accents": "\uff11" + "\u0300\u0323" * 100_000,
    "prose": "word " * 100_000,
}


def labels_of(work: Any, label: Label = PRIVATE) -> list[str]:
    async def main() -> list[str]:
        long = LongTexts()
        try:
            labeller = Labeller(Gateway(labels={label.name: label}), long_texts=long)
            return [each.by for each in (await labeller.clear(work, Origin())).labels]
        finally:
            long.close()

    return asyncio.run(main())


def chat(text: str) -> Job:
    return Job((Message("user", text),))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_text_that_takes_long_is_not_read_on_the_event_loop(name: str, monkeypatch: pytest.MonkeyPatch):
    here: list[tuple[int, int, bool]] = []
    sieve_of((), PRIVATE.detect)  # as a server does at its start
    find = Sieve.find

    def watched(self: Sieve, texts: list[str], most: int = MOST_HITS):
        ended = False
        try:
            found = find(self, texts, most)
            ended = True
            return found
        finally:
            here.append((sum(map(len, texts)), most, ended))

    monkeypatch.setattr(Sieve, "find", watched)
    labels_of(chat(HOSTILE[name]))
    assert all(size <= IN_LOOP and most <= HITS_IN_LOOP and not ended for size, most, ended in here)


def test_what_a_first_text_would_compile_is_there_before_it(monkeypatch: pytest.MonkeyPatch):
    sieve_of.cache_clear()
    read: list[int] = []
    find = Sieve.find
    monkeypatch.setattr(
        Sieve, "find", lambda self, texts, most=MOST_HITS: read.append(most) or find(self, texts, most)
    )
    first = Labeller(Gateway(labels={"private": PRIVATE}))
    assert len(read) == 1, "a text of near misses was read"
    again = Labeller(Gateway(labels={"private": PRIVATE}))  # as a reload's plan makes it on the loop
    assert len(read) == 1 and first._sieve is again._sieve


def test_a_long_text_is_labelled_as_a_short_one_is():
    card = "4111 1111 1111 1111"
    long = "word " * 40_000
    call = ToolCall("1", "f", '{"a": "' + long + '", "to": "jane\\u0040example.org"}')
    page = Image("", url="data:," + long + "4111%201111%201111%201111")
    for work, wanted in (
        (chat(long + card), "pii: card number"),
        (EmbedJob((long, "é" * 70_000, card)), "pii: card number"),
        (Job((Message("assistant", "", tool_calls=(call,)),)), "pii: email address"),
        (Job((Message("user", "", parts=(page,)),)), "pii: card number"),
    ):
        assert wanted in labels_of(work)
    assert labels_of(chat(long)) == []
    assert labels_of(chat(long + "Projekt 17"), Label("own", patterns=(r"Projekt \d+",))) != []


def test_a_text_with_more_candidates_than_are_checked_counts_as_personal():
    assert labels_of(chat("a@b.zz " * (MOST_HITS + 1))) == [
        "a text that was not read: more candidates than are checked"
    ]
    with pytest.raises(TooManyHits):
        Sieve().find(["a@b.zz " * 11], most=10)


def test_what_no_country_has_costs_no_parse(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(phonenumbers, "parse", lambda *given: asked.append(given))
    assert Sieve().find([PHONES * 1000]) == set() and asked == []


def test_a_region_that_is_not_possible_has_no_such_number():
    draw = random.Random(3)
    for _ in range(4000):
        digits = "".join(draw.choice("0123456789") for _ in range(draw.randrange(6, 15)))
        digits = draw.choice(("", "", "0", "00", "011", "010", "0011")) + digits
        region = draw.choice(_ANY)
        try:
            valid = phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
        except phonenumbers.NumberParseException:
            continue
        assert not valid or region in _possible(_ANY, digits), (region, digits)


def test_keys_take_turns_and_each_has_one_at_a_time():
    async def main() -> list[str]:
        turns, order, ran = KeyTurns(2), [], {"greedy": 0, "other": 0}

        async def one(key: str) -> None:
            async with turns.of(key):
                ran[key] += 1
                assert ran[key] == 1
                order.append(key)
                await asyncio.sleep(0)
                ran[key] -= 1

        tasks = [asyncio.create_task(one("greedy")) for _ in range(20)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(one("other")))
        left = asyncio.create_task(one("greedy"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(*tasks, left, return_exceptions=True)
        assert await asyncio.wait_for(turns.of("greedy").__aenter__(), 5) is None  # nothing was lost
        return order

    order = asyncio.run(main())
    assert order.index("other") <= 3 and len(order) == 21


def test_a_process_that_something_killed_is_replaced_and_one_at_its_limit_is_not():
    async def main() -> None:
        long = LongTexts()
        assert await long.find(PII, chat("jane@example.org"), "") != set()
        (reader,) = long._idle
        reader._process.kill()
        assert await long.find(PII, chat("jane@example.org"), "") != set()
        (reader,) = long._idle
        reading = asyncio.create_task(long.find(PII, chat("a@b.zz " * 2_000_000), ""))
        while long._idle:
            await asyncio.sleep(0)
        os.kill(reader.pid, signal.SIGPROF)  # as its timer does
        with pytest.raises(NotRead, match="takes longer"):
            await reading
        long.close()

    asyncio.run(main())


def test_a_client_that_leaves_ends_the_reading_of_its_text():
    async def main() -> None:
        long = LongTexts(most=1)
        await long.find(PII, chat("x"), "")
        (reader,) = long._idle
        reading = asyncio.create_task(long.find(PII, chat("a@b.zz " * 2_000_000), ""))
        while long._idle:
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert reader._process.wait(30) == -signal.SIGKILL
        assert await long.find(PII, chat("jane@example.org"), "") != set()
        long.close()

    asyncio.run(main())


def test_where_no_process_starts_the_text_counts_as_personal(monkeypatch: pytest.MonkeyPatch):
    def refused(*given: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(children, "spawn", refused)
    (why,) = labels_of(chat("word " * 100_000))
    assert "no process could be started" in why


def test_texts_beside_a_gap_are_read_as_the_prompt_is():
    job = Job(prompt="a", suffix="b", beside=(("c.py", "d"),))
    assert {"a", "b", "c.py", "d"} <= set(parts_of(job))
    assert prompt_size(job).bytes > prompt_size(Job(prompt="a", suffix="b")).bytes
