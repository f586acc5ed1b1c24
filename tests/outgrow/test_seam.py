"""Where two engines' parts of an answer meet: no character twice, none missing, whatever was held back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from freehold.base.serving import Job
from freehold.base.types import Chunk, Format, Message, TokenLogprob, Tool, ToolPiece
from freehold.outgrow.replicas.answer import Deviated, Rejoined, SentLog, job_from_ids, kept, takes_prefix
from tests.outgrow.engines import synchronous

PROMPT = tuple(b"<user>hi\n<assistant>")
GREEDY = Job(messages=(Message("user", "hi"),), max_tokens=400, sampling={"temperature": 0.0})
SAID = "Ein Satz mit Ümläuten, 日本語 und 🙂🙂. "


async def detokenize(ids: list[int]) -> str:
    """Every byte is a token, so that most characters of SAID are several."""
    return bytes(ids).decode("utf-8", "replace")


def engine(ids: list[int], hold: int = 0, most: int = 1) -> Iterator[Chunk]:
    """Send bytes as an engine does: characters once they are whole, the last `hold` when more have come."""
    sent, draw = 0, random.Random(len(ids))
    done = 0
    while done < len(ids):
        step = min(draw.randint(1, most), len(ids) - done)
        done += step
        text = bytes(ids[:done]).decode("utf-8", "ignore")
        if done < len(ids):
            text = text[: max(len(text) - hold, 0)]
        logprobs = tuple(TokenLogprob(i, -1.0) for i in ids[done - step : done])
        yield Chunk(text[sent:], token_ids=tuple(ids[done - step : done]), logprobs=logprobs)
        sent = max(sent, len(text))


def log(chunks: list[Chunk]) -> SentLog:
    sent = SentLog()
    sent.prompt_ids = PROMPT
    for chunk in chunks:
        sent.add(chunk)
    return sent


@pytest.mark.parametrize("hold, most", [(0, 1), (0, 4), (5, 1), (5, 4)])
@synchronous
async def test_answer_cut_anywhere_joins_without_a_seam(hold: int, most: int) -> None:
    whole = list((SAID * 3).encode())
    job = replace(GREEDY, stop=("x" * (hold + 1),) if hold else ())
    for cut in range(1, len(whole), 3):
        first = list(engine(whole, hold, most))
        first = first[
            : next(i for i in range(len(first)) if sum(len(c.token_ids) for c in first[: i + 1]) >= cut)
        ]
        sent = log(first)
        if not sent.ids:
            continue
        found = await kept(job, sent, detokenize)
        assert found is not None
        keep, chars = found
        rejoined = Rejoined.from_ids(sent, keep, chars)
        rest = [c for c in map(rejoined.chunk, engine(whole[keep:], hold, most)) if c is not None]
        assert rejoined.over
        assert "".join(c.text for c in first + rest) == SAID * 3
        assert [i for c in first + rest for i in c.token_ids] == whole
        assert [p.token_id for c in first + rest for p in c.logprobs] == whole
        assert job_from_ids(job, sent, keep).max_tokens == 400 - keep


@synchronous
async def test_stop_string_across_the_seam_is_computed_by_one_engine() -> None:
    ids = list(b"abcdefghijkl")
    job = replace(GREEDY, stop=("jkl!",))
    sent = log(list(engine(ids, hold=3))[:-1])
    assert sent.text == "abcdefgh" and len(sent.ids) == 11
    assert await kept(job, sent, detokenize) == (7, 1)  # "h" is sent again and left out; "ijk" was never sent


@synchronous
async def test_ids_alone_tell_the_seam_only_where_nothing_can_be_held_back() -> None:
    sent = log(list(engine(list(b"plain text"))))
    assert await kept(GREEDY, sent, None) == (10, 0)
    assert await kept(replace(GREEDY, stop=("!!",)), sent, None) is None
    half = log([Chunk("", token_ids=(0xC3,))])
    assert await kept(GREEDY, half, None) is None
    assert await kept(GREEDY, half, detokenize) == (0, 0)


@synchronous
async def test_tokens_of_a_seed_are_not_drawn_again_in_part() -> None:
    seeded = replace(GREEDY, sampling={"temperature": 0.7, "seed": 7})
    sent = log(list(engine(list(b"plain text"))))
    assert takes_prefix(seeded, sent) and await kept(seeded, sent, detokenize) == (10, 0)
    assert await kept(replace(seeded, stop=("!!",)), sent, detokenize) is None
    half = log([Chunk("a", token_ids=(97,)), Chunk("", token_ids=(0xC3,))])
    assert await kept(seeded, half, detokenize) is None


def test_what_depends_on_where_the_answer_began_is_computed_again() -> None:
    sent = log([Chunk("a", token_ids=(97,))])
    assert takes_prefix(GREEDY, sent)
    assert not takes_prefix(replace(GREEDY, format=Format("json")), sent)
    assert not takes_prefix(replace(GREEDY, tools=(Tool("add"),)), sent)
    assert not takes_prefix(replace(GREEDY, sampling={"temperature": 0, "presence_penalty": 1.0}), sent)
    assert not takes_prefix(GREEDY, log([Chunk(thinking="hm", token_ids=(1,))]))
    assert takes_prefix(GREEDY, log([Chunk(thinking="hm", token_ids=(1,)), Chunk("a", token_ids=(2,))]))
    assert not takes_prefix(GREEDY, SentLog())


def test_tool_call_that_was_begun_is_not_begun_twice() -> None:
    begun = [
        Chunk(tool_calls=(ToolPiece(0, "call_1", "add", '{"a": '),)),
        Chunk(tool_calls=(ToolPiece(0, arguments="1"),)),
    ]
    rejoined = Rejoined.from_start(log(begun))
    again = Chunk(tool_calls=(ToolPiece(0, "call_other", "add", '{"a": 1, "b": 2}'),))
    new = rejoined.chunk(again)
    assert new is not None and new.tool_calls == (ToolPiece(0, arguments=', "b": 2}'),)
    assert rejoined.over


def test_engine_that_makes_another_text_is_found_out() -> None:
    rejoined = Rejoined.from_start(log([Chunk("the same")]))
    assert rejoined.chunk(Chunk("the ")) is None
    with pytest.raises(Deviated):
        rejoined.chunk(Chunk("other"))
    rejoined = Rejoined.from_start(log([Chunk("the same")]))
    with pytest.raises(Deviated):
        rejoined.chunk(Chunk("the", finish_reason="stop"))
